"""A real headless Chromium that opens a page and tells what happened in it.

Spoken to in the DevTools protocol over a pair of pipes (`--remote-debugging-pipe`: JSON messages,
each ended by a NUL byte, read by the browser from descriptor 3 and written to 4), so that no
package and no open port is needed.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # containers run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--window-size=1100,900",
    "about:blank",
)
PATIENCE_S = 60.0
"""For any answer; a page of 5 MB of script takes seconds on a busy machine."""


def find_browser() -> str | None:
    """Path of a Chromium on this machine; `CHROMIUM` in the environment names another."""
    named = os.environ.get("CHROMIUM")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


class BrowserError(RuntimeError):
    """The browser went away or did not answer."""


@dataclass
class Visit:
    """What a page did while it was open."""

    requests: list[str] = field(default_factory=list)
    """Every address the page asked for, itself first."""
    complaints: list[str] = field(default_factory=list)
    """Errors and warnings of the console, exceptions, and what the content policy refused."""
    value: Any = None
    """Of the script that was asked about the page."""


class Browser:
    """One process, one tab."""

    def __init__(self, program: str, profile: Path) -> None:
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        os.set_blocking(self._in, False)
        # A shell puts the pipes where the browser looks; `pass_fds` keeps their numbers.
        move = f'exec 3<&{to_browser} 4>&{from_browser}; exec "$0" "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", move, program, *FLAGS[:-1], f"--user-data-dir={profile}", FLAGS[-1]],
            pass_fds=(to_browser, from_browser),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._number = 0
        self._buffer = b""
        self._events: list[dict[str, Any]] = []
        self._session: str | None = None
        try:
            [target] = [
                one["targetId"]
                for one in self.call("Target.getTargets")["targetInfos"]
                if one["type"] == "page"
            ]
            attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        except BaseException:
            self.close()
            raise
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and wait for its answer; events on the way are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            found = self._read()
            if found.get("id") != self._number:
                self._events.append(found)
            elif "error" in found:
                raise BrowserError(f"{method}: {found['error']}")
            else:
                result: dict[str, Any] = found["result"]
                return result

    def visit(self, page: Path, script: str, *, width: int = 1100, height: int = 900) -> Visit:
        """Open a file, wait until it is loaded and drawn, and evaluate `script` in it."""
        self._events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.call("Page.navigate", url=page.as_uri())
        while not any(one.get("method") == "Page.loadEventFired" for one in self._events):
            self._events.append(self._read())
        drawn = "new Promise(done => requestAnimationFrame(() => setTimeout(done, 300)))"
        self.evaluate(drawn)
        visit = Visit(value=self.evaluate(script))
        for event in self._events:
            _note(visit, event.get("method", ""), event.get("params", {}))
        return visit

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page, promises awaited."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise BrowserError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page, as far as it can be scrolled, as PNG."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def close(self) -> None:
        """End the process and its children, which are in a group of their own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._out)
        os.close(self._in)

    def _read(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE_S
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise BrowserError(f"no answer in {PATIENCE_S:.0f} s")
            found = os.read(self._in, 1 << 20)
            if not found:
                raise BrowserError("the browser has ended")
            self._buffer += found
        message, self._buffer = self._buffer.split(b"\0", 1)
        decoded: dict[str, Any] = json.loads(message)
        return decoded


def _note(visit: Visit, method: str, event: dict[str, Any]) -> None:
    if method == "Network.requestWillBeSent":
        visit.requests.append(event["request"]["url"])
    elif method == "Runtime.exceptionThrown":
        visit.complaints.append(str(event["exceptionDetails"]))
    elif method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
        visit.complaints.append(event["entry"]["text"])
    elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning", "assert"):
        visit.complaints.append(str(event["args"]))


@contextlib.contextmanager
def open_browser(program: str, profile: Path) -> Iterator[Browser]:
    """A browser that is gone afterwards, whatever happened."""
    browser = Browser(program, profile)
    try:
        yield browser
    finally:
        browser.close()


__all__ = ["Browser", "BrowserError", "Visit", "find_browser", "open_browser"]
