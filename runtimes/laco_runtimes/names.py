"""Which files a bundle may list: what any file system can hold and tell apart, and no code."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from laco_runtimes.errors import BundleError
from laco_runtimes.manifest import MANIFEST_NAME
from laco_runtimes.signing import SIGNATURE_NAME

CODE = re.compile(
    r".*\.(plan|engine|trt|blob|so(\.[0-9]+)*|dll|dylib|pyd|exe|pickle|pkl|pth?)", re.IGNORECASE
)
"""Files that are run rather than read: plans of TensorRT, libraries, pickles."""

MAX_PART = 200
"""Longest name of a file or folder; with a suffix of ours it stays below 255, everybody's limit."""
MAX_PATH = 1000


def check_names(names: Collection[str], root: Path) -> None:
    """Refuse files that are code, and names that some file system cannot hold or keep apart.

    Args:
        names: paths in the bundle, each as the manifest's schema wants it.
        root: for messages.

    Raises:
        BundleError: naming the first such file.
    """
    files = set(names)
    spellings = {own: own for own in (MANIFEST_NAME, SIGNATURE_NAME)}
    for name in names:
        path = PurePosixPath(name)
        folders = [str(folder) for folder in path.parents][:-1]
        if CODE.fullmatch(name):
            raise _refused(
                root, f"{name!r}, which is code, and engines build their plans on the device"
            )
        if len(name) > MAX_PATH or max(map(len, path.parts)) > MAX_PART:
            raise _refused(root, f"{name[:40] + '...'!r}, a name of {len(name)} characters")
        if name in (MANIFEST_NAME, SIGNATURE_NAME) or files.intersection(folders):
            raise _refused(root, f"{name!r}, where another file of the bundle has its place")
        for part in (name, *folders):
            if (other := spellings.setdefault(part.casefold(), part)) != part:
                raise _refused(root, f"{part!r} and {other!r}, one file where case does not count")


def _refused(root: Path, what: str) -> BundleError:
    return BundleError(
        f"the manifest of '{root}' lists {what}. Export the model again, or get the bundle from "
        "somebody you trust."
    )


__all__ = ["check_names"]
