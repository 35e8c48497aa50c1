"""What a hostile author does: change a bundle and seal it again, so that every hash matches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import StringStringEntryProto, TensorProto

from laco_runtimes.manifest import MANIFEST_NAME

External = dict[str, str]


def seal_again(bundle: Path) -> None:
    """Write sizes and SHA-256 of the files as they are now into the manifest."""
    path = bundle / MANIFEST_NAME
    data = json.loads(path.read_text())
    data["files"] = [
        {
            "path": file.relative_to(bundle).as_posix(),
            "size": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for file in sorted(bundle.rglob("*"))
        if file.is_file() and file != path
    ]
    path.write_text(json.dumps(data))


def change_tensor(graph: Path, change: Callable[[TensorProto], None]) -> None:
    """Change the first tensor of an ONNX file that has its data outside."""
    model = onnx.load(graph, load_external_data=False)
    change(next(one for one in model.graph.initializer if one.external_data))
    graph.write_bytes(model.SerializeToString())


def external(tensor: TensorProto) -> External:
    return {entry.key: entry.value for entry in tensor.external_data}


def set_external(tensor: TensorProto, **entries: str | int) -> None:
    """Replace or add entries of a tensor's external data; None of them is checked."""
    values = {**external(tensor), **{key: str(value) for key, value in entries.items()}}
    del tensor.external_data[:]
    tensor.external_data.extend(
        StringStringEntryProto(key=key, value=value) for key, value in values.items()
    )
