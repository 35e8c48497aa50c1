"""Check 9 of the TensorRT path: the stubs name only what is there, and the sources nothing that is
gone. TensorRT ships no types; `typings/` has them in our own words, for mypy.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]
STUBS = {name: ROOT / "typings" / name / "__init__.pyi" for name in ("tensorrt", "tensorrt_rtx")}

ENTERPRISE_ONLY: frozenset[str] = frozenset()
"""Names of the stub of TensorRT that TensorRT-RTX does not have, `Class.name`. None is used."""

GONE = (
    "BuilderFlag.FP16",
    "BuilderFlag.INT8",
    "BuilderFlag.BF16",
    "BuilderFlag.FP8",
    "OBEY_PRECISION_CONSTRAINTS",
    "PREFER_PRECISION_CONSTRAINTS",
    "EXPLICIT_BATCH",
    "max_workspace_size",
    "IInt8Calibrator",
    "int8_calibrator",
    "IAlgorithmSelector",
    "build_engine(",
    "build_cuda_engine",
    "execute_async_v2",
    "execute_async(",
    "get_binding_",
    "num_bindings",
    "binding_is_input",
    "create_execution_context_without_device_memory",
    "engine_host_code_allowed = True",
    "nonpad_kv_seqlen=",
)
"""Removed from TensorRT 11, or never to be used."""


@pytest.fixture(scope="module")
def rtx() -> ModuleType:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX, which imports without a GPU")
    return importlib.import_module("tensorrt_rtx")


def stubbed(path: Path) -> Iterator[str]:
    """Every class of a stub and every name in it, `Class`, `Class.name`, `Class.Inner.name`."""

    def walk(body: list[ast.stmt], prefix: str) -> Iterator[str]:
        for item in body:
            match item:
                case ast.ClassDef(name=name):
                    yield prefix + name
                    yield from walk(item.body, f"{prefix}{name}.")
                case ast.FunctionDef(name=name):
                    yield prefix + name
                case ast.AnnAssign(target=ast.Name(id=name)):
                    yield prefix + name
                case ast.Assign(targets=[ast.Name(id=name)]):
                    yield prefix + name

    return walk(ast.parse(path.read_text()).body, "")


def has(module: ModuleType, name: str) -> bool:
    owner: object = module
    for part in name.split("."):
        if not hasattr(owner, part):
            return False
        owner = getattr(owner, part)
    return True


@pytest.mark.parametrize("stub", STUBS)
def test_check_9_every_name_in_the_stubs_is_in_the_package(stub: str, rtx: ModuleType) -> None:
    names = list(stubbed(STUBS[stub]))
    assert len(names) > 5
    missing = [name for name in names if name not in ENTERPRISE_ONLY and not has(rtx, name)]
    assert missing == []


def test_the_list_of_exceptions_has_no_name_that_is_there(rtx: ModuleType) -> None:
    assert [name for name in ENTERPRISE_ONLY if has(rtx, name)] == []


def test_a_name_that_is_gone_would_be_seen(rtx: ModuleType) -> None:
    assert not has(rtx, "BuilderFlag.FP16")
    assert not has(rtx, "IBuilderConfig.max_workspace_size")
    assert has(rtx, "NetworkDefinitionCreationFlag.STRONGLY_TYPED")


def test_every_class_that_is_used_of_a_namespace_is_in_the_stubs() -> None:
    source = (ROOT / "runtimes/laco_runtimes/plan_products.py").read_text()
    used = set(re.findall(r"type\[tensorrt\.(\w+)\]", source))
    assert used
    assert used <= set(stubbed(STUBS["tensorrt"]))


def sources() -> list[Path]:
    folders = ("runtimes", "export", "laco_deploy", "typings")
    return [
        path
        for folder in folders
        for pattern in ("*.py", "*.pyi")
        for path in (ROOT / folder).rglob(pattern)
    ]


@pytest.mark.parametrize("name", GONE)
def test_check_9_no_source_mentions_what_is_gone(name: str) -> None:
    assert [str(path) for path in sources() if name in path.read_text(encoding="utf-8")] == []
