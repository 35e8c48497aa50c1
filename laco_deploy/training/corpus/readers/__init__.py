"""Readers of data files, by kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

from laco_deploy.training.corpus.readers.base import Estimates, FileSettings, Reader
from laco_deploy.training.corpus.readers.llava import LlavaReader
from laco_deploy.training.corpus.readers.parquet import ParquetReader
from laco_deploy.training.corpus.readers.webdataset import WebdatasetReader

Kind = Literal["llava", "parquet", "webdataset"]

READERS: Mapping[Kind, Callable[[FileSettings], Reader]] = MappingProxyType(
    {"llava": LlavaReader, "parquet": ParquetReader, "webdataset": WebdatasetReader}
)

SUFFIXES: Mapping[str, Kind] = MappingProxyType(
    {".json": "llava", ".jsonl": "llava", ".parquet": "parquet", ".tar": "webdataset"}
)
"""The kind of a file by its ending."""

__all__ = ["READERS", "SUFFIXES", "Estimates", "FileSettings", "Kind", "Reader"]
