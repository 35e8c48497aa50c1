"""Which files a mixture is of, and how much of each."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from laco_deploy.training.corpus.readers import SUFFIXES, Kind
from laco_runtimes.errors import DataError

_TAKE = re.compile(r"(?P<part>first|end|random):(?P<amount>\d+(?:\.\d+)?)(?P<percent>%?)")
_TYPES: Mapping[str, tuple[type, ...]] = {
    "path": (str,),
    "kind": (str,),
    "media_root": (str,),
    "weight": (int, float),
    "take": (str,),
    "name": (str,),
}
_START_BYTES = 4096
_LLAVA_KEYS = {"json_path": "path", "sampling_strategy": "take"}
"""As LLaVA-OneVision's own mixture files name them."""


@dataclass(frozen=True, slots=True)
class MixtureEntry:
    """A data set of a mixture, and how much of it makes an epoch.

    Raises:
        DataError: nothing at `path`, an unknown kind or `take`, a weight that is not positive, or
            both a weight and `take`.
    """

    path: Path
    """A file, or a folder of files of one kind (shards)."""
    kind: Kind | None = None
    """By default as the ending of the files says."""
    media_root: Path | None = None
    """Folder that paths of images and videos start from; by default that of the data file."""
    weight: float = 1.0
    """How often each sample is seen in an epoch: 2 is twice, 0.25 a random quarter."""
    take: str = "all"
    """`all`, `first:10%`, `end:1000`, `random:500`: a share or a number of samples."""
    name: str = ""
    """Name in reports; by default that of the file or folder."""

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in get_args(Kind):
            raise DataError(
                f"unknown kind of data {self.kind!r}. Known: {', '.join(get_args(Kind))}."
            )
        if not 0 < self.weight < math.inf:
            raise DataError(f"the weight of '{self.path}' is {self.weight!r}. Give one above 0.")
        if self.take != "all":
            if not _TAKE.fullmatch(self.take):
                raise DataError(
                    f"'{self.path}' is to be taken as {self.take!r}, which is not known. "
                    "Write all, first:10%, end:1000 or random:500."
                )
            if self.weight != 1:
                raise DataError(f"'{self.path}' has both a weight and take. Give one of them.")

    @property
    def label(self) -> str:
        """Name in reports."""
        return self.name or self.path.stem

    def files(self) -> tuple[tuple[Path, Kind], ...]:
        """The data files in the order of their names, each with its kind.

        Raises:
            DataError: there is none, or a folder holds files of several kinds and none is named.
        """
        if not self.path.exists():
            raise DataError(f"there is no data at '{self.path}'. Check the path.")
        if not self.path.is_dir():
            kind = self.kind or SUFFIXES.get(self.path.suffix)
            if kind is None:
                raise DataError(
                    f"the kind of '{self.path}' is not known by its ending. "
                    f"Name it with kind, or use one of {', '.join(SUFFIXES)}."
                )
            return ((self.path, kind),)
        found = [
            (path, SUFFIXES[path.suffix])
            for path in sorted(self.path.iterdir())
            if path.suffix in SUFFIXES and not path.name.startswith(".")
        ]
        found = [(path, kind) for path, kind in found if kind == (self.kind or kind)]
        kinds = sorted({kind for _, kind in found})
        if len(kinds) != 1:
            what = f"files of several kinds ({', '.join(kinds)})" if kinds else "no data files"
            raise DataError(f"'{self.path}' holds {what}. Name a file, or the kind of the files.")
        return tuple(found)

    def rows(self, length: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Which of `length` samples make an epoch, in order, some maybe several times."""
        everything = np.arange(length)
        if found := _TAKE.fullmatch(self.take):
            amount = float(found["amount"])
            count = math.ceil(length * amount / 100) if found["percent"] else int(amount)
            count = min(count, length)
            if found["part"] == "random":
                return np.sort(rng.permutation(length)[:count])
            return everything[:count] if found["part"] == "first" else everything[length - count :]
        times = math.floor(self.weight)
        rest = rng.permutation(length)[: round((self.weight - times) * length)]
        return np.concatenate([*[everything] * times, np.sort(rest)])


def read_mixture(path: str | Path) -> tuple[MixtureEntry, ...]:
    """The entries of a mixture file, or of a data file or folder of shards by itself.

    A mixture file is YAML or JSON: `datasets:` and a list of entries with `path`, and where wanted
    `kind`, `media_root`, `weight` or `take`, and `name`. Relative paths start from its folder.
    LLaVA's own files (`json_path`, `sampling_strategy`) are understood.

    Raises:
        DataError: no such file, or one that says something else.
    """
    path = Path(path)
    if path.is_dir() or path.suffix not in (".yaml", ".yml", ".json"):
        entries: tuple[MixtureEntry, ...] = (MixtureEntry(path),)
    else:
        settings = _read_settings(path)
        if settings is None:
            entries = (MixtureEntry(path),)
        else:
            entries = tuple(_entry(given, path) for given in settings)
    for entry in entries:
        entry.files()
    return entries


def _read_settings(path: Path) -> list[Any] | None:
    """The list of entries; None for a JSON file that is a data file."""
    import yaml

    try:
        with path.open("rb") as file:
            start = file.read(_START_BYTES)
        if path.suffix == ".json" and not start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            return None
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"'{path}' cannot be read: {error.strerror}. Check the path.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}' is not UTF-8. Save it as UTF-8.") from error
    try:
        loaded = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"'{path}' cannot be read as a mixture. Mend it: {error}") from error
    entries = loaded.get("datasets") if isinstance(loaded, Mapping) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"'{path}' names no data sets. Write a list of them under datasets.")
    return entries


def _entry(given: Any, path: Path) -> MixtureEntry:
    known = {*_TYPES, *_LLAVA_KEYS}
    if not isinstance(given, Mapping) or not set(given) <= known:
        unknown = sorted(map(str, set(given) - known)) if isinstance(given, Mapping) else [given]
        raise DataError(
            f"'{path}' has an entry with {unknown[0]!r}, which is not known. "
            f"Known: {', '.join(_TYPES)}."
        )
    values: dict[str, Any] = {_LLAVA_KEYS.get(str(k), str(k)): v for k, v in given.items()}
    if "path" not in values:
        raise DataError(f"'{path}' has an entry without a path. Name its file or folder.")
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, _TYPES[key]):
            raise DataError(f"'{path}' has an entry with {key} = {value!r}. Mend it.")
    for key in ("path", "media_root"):
        if key in values:
            values[key] = path.parent / values[key]
    return MixtureEntry(**values)


__all__ = ["MixtureEntry", "read_mixture"]
