"""Plans that were built on this machine, kept per user.

A TensorRT plan is native code: to read one is to run it. So a plan is never taken from a bundle; it
is built here from the bundle's ONNX and kept in a folder that nobody else can write to. Beside each
lies what it is bound to: its own hash, the ONNX it came from, the product's version, the GPU and
its driver. All of that is compared before the product sees a byte of the plan; where something
differs, the plan is built again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from laco_runtimes.errors import EngineError
from laco_runtimes.plan_builder import BuiltPlan

logger = logging.getLogger("laco")

CACHE_VARIABLE = "LACO_CACHE_DIR"
"""Environment variable with the folder to keep plans in, instead of the user's own cache."""

_BINARY = getattr(os, "O_BINARY", 0)  # Windows, which has no O_NOFOLLOW
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class PlanFacts(BaseModel):
    """What a plan is bound to; it is of no use where one of these differs."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    module: str
    """`vision_encoder`, `embed_tokens` or `decoder`."""
    product: str
    version: str
    """Of the product."""
    compute_capability: str
    """Of the GPU, `8.9`."""
    device: str
    """Name of the GPU."""
    driver: str
    """CUDA version of the driver."""
    precision: str
    profiles: str
    """Shapes it was built for, and other settings of the build."""
    onnx: dict[str, Sha256]
    """The graph and its external data, by path in the bundle."""


class _Sidecar(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    facts: PlanFacts
    sha256: Sha256
    """Of the plan."""
    size: Annotated[int, Field(ge=1)]
    build_seconds: float
    verified: bool = False
    """Whether the answers of this plan were compared with those stored in the bundle."""


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """A plan that may be given to the product."""

    data: bytes = field(repr=False)
    fresh: bool
    """It was built just now."""
    verified: bool
    """Its answers were compared with those stored in the bundle."""
    reason: str
    """Why it was built, or that it was found."""


class PlanCache:
    """A private folder of plans.

    Args:
        folder: made if it is not there; None for `plan_folder()`.

    Raises:
        EngineError: the folder cannot be made, is a link, belongs to somebody else, or others can
            write to it.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or plan_folder()
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise EngineError(
                f"the folder for plans, '{self.folder}', cannot be made: {error.strerror}. "
                f"Set {CACHE_VARIABLE} to a folder of your own."
            ) from error
        _check_private(self.folder, self.folder.lstat(), stat.S_ISDIR)

    def get(self, facts: PlanFacts, build: Callable[[], BuiltPlan]) -> StoredPlan:
        """The plan of these facts; built if there is none, or one that is bound to others.

        Raises:
            EngineError: a plan that is a link, belongs to somebody else, or that others can write
                to; or what `build` raises.
        """
        found, reason = self._find(facts)
        if found is not None:
            return found
        logger.info("building a plan of %s for %s: %s", facts.module, facts.device, reason)
        built = build()
        self._store(facts, built)
        logger.info("built a plan of %s in %.0f s", facts.module, built.seconds)
        return StoredPlan(built.data, fresh=True, verified=False, reason=reason)

    def mark_verified(self, facts: PlanFacts) -> None:
        """Note that the answers of this plan are those stored in the bundle."""
        sidecar = self._read_sidecar(facts)
        if isinstance(sidecar, _Sidecar):
            done = sidecar.model_copy(update={"verified": True})
            _write_private(self._path(facts, ".json"), done.model_dump_json(indent=2).encode())

    def discard(self, facts: PlanFacts) -> None:
        """Remove a plan, one that gives wrong answers for example."""
        for suffix in (".json", ".plan"):
            self._path(facts, suffix).unlink(missing_ok=True)

    def _path(self, facts: PlanFacts, suffix: str) -> Path:
        # What often changes (version, driver) is not in the name: a new plan replaces the old one.
        source = hashlib.sha256(repr(sorted(facts.onnx.items())).encode()).hexdigest()[:16]
        device = facts.compute_capability.replace(".", "")
        return self.folder / f"{facts.module}-{source}-{facts.product}-sm{device}{suffix}"

    def _find(self, facts: PlanFacts) -> tuple[StoredPlan | None, str]:
        sidecar = self._read_sidecar(facts)
        if isinstance(sidecar, str):
            return None, sidecar
        for name, wanted in facts.model_dump().items():
            if (stored := getattr(sidecar.facts, name)) != wanted:
                return None, f"the one kept here is for {name} {stored}, and this is {wanted}"
        data = _read_private(self._path(facts, ".plan"))
        if data is None:
            return None, "the one kept here is gone"
        if len(data) != sidecar.size or hashlib.sha256(data).hexdigest() != sidecar.sha256:
            return None, "the one kept here is damaged or was changed"
        return StoredPlan(data, fresh=False, verified=sidecar.verified, reason="found"), ""

    def _read_sidecar(self, facts: PlanFacts) -> _Sidecar | str:
        """Or why there is none to go by."""
        data = _read_private(self._path(facts, ".json"))
        if data is None:
            return "none was built here before"
        try:
            return _Sidecar.model_validate_json(data)
        except ValidationError:
            return "what is noted about the one kept here cannot be read"

    def _store(self, facts: PlanFacts, built: BuiltPlan) -> None:
        sidecar = _Sidecar(
            facts=facts,
            sha256=hashlib.sha256(built.data).hexdigest(),
            size=len(built.data),
            build_seconds=round(built.seconds, 1),
        )
        # The note last: a plan without one, or with the old one, is built again.
        _write_private(self._path(facts, ".plan"), built.data)
        _write_private(self._path(facts, ".json"), sidecar.model_dump_json(indent=2).encode())


def plan_folder() -> Path:
    """Where this user's plans are kept."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser() / "plans"
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        default = Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base, default = None, Path.home() / "Library" / "Caches"
    else:
        base, default = os.environ.get("XDG_CACHE_HOME"), Path.home() / ".cache"
    return (Path(base) if base else default) / "laco-deploy" / "plans"


def _check_private(path: Path, status: os.stat_result, kind: Callable[[int], bool]) -> None:
    """Refuse what somebody else may have put there or could change.

    Windows has no such owners and modes; a user's local application data is private there.
    """
    trouble = None
    if not kind(status.st_mode):
        trouble = "is a link or of another kind"
    elif os.name != "nt":
        if status.st_uid != os.getuid():
            trouble = f"belongs to user {status.st_uid}"
        elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            trouble = "can be written to by others"
    if trouble:
        raise EngineError(
            f"'{path}' {trouble}, and plans are run as native code. "
            f"Remove it, or set {CACHE_VARIABLE} to a folder of your own."
        )


def _read_private(path: Path) -> bytes | None:
    """Contents of a file of ours, checked and read through one handle; None where there is none."""
    try:
        handle = os.open(path, os.O_RDONLY | _NO_LINK | _BINARY)
    except FileNotFoundError:
        return None
    except OSError as error:  # ELOOP: a link
        raise EngineError(
            f"'{path}' cannot be read or is a link: {error.strerror}. "
            f"Remove it, or set {CACHE_VARIABLE} to a folder of your own."
        ) from error
    with os.fdopen(handle, "rb") as file:
        _check_private(path, os.fstat(file.fileno()), stat.S_ISREG)
        return file.read()


def _write_private(path: Path, data: bytes) -> None:
    """Write a whole file or nothing, readable by its owner alone."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise EngineError(
            f"a plan cannot be kept in '{path.parent}': {error.strerror}. "
            f"Make room there, or set {CACHE_VARIABLE} to another folder of your own."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


__all__ = ["CACHE_VARIABLE", "PlanCache", "PlanFacts", "StoredPlan", "plan_folder"]
