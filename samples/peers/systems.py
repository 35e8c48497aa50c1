"""The table of systems: in which environment each lives, how its files are made, how it is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from samples.openvino_genai_ratio import PEER, PEER_PACKAGES

OURS = "laco"
TORCH = next(package for package in PEER_PACKAGES if package.startswith("torch"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What is installed for one peer, in this order; each entry is one call of `pip install`."""

    installs: tuple[tuple[str, ...], ...]


ENVIRONMENTS: Mapping[str, Environment] = {
    "openvino_genai": Environment(
        installs=((*PEER_PACKAGES, "openvino-genai"), ("--no-deps", PEER))
    ),
    "onnxruntime_genai": Environment(
        installs=(
            ("onnxruntime-genai==0.18.0", "onnx", "onnx-ir", "onnxscript"),
            (TORCH, "transformers"),
        )
    ),
    "llama_cpp": Environment(
        # Built here, so that it uses what this processor has.
        installs=(
            ("--no-binary", "llama-cpp-python", "llama-cpp-python==0.3.36"),
            ("gguf", "safetensors"),
        )
    ),
}
"""By peer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One row of the comparison."""

    name: str
    home: str
    """Key of `ENVIRONMENTS`, or `laco` for the one this program runs in."""
    model: str
    """What is loaded, below the work folder. It is there when all of it is."""
    weights: str
    against: str
    """Name of the one of ours whose time is divided by this one's."""
    make: tuple[str, ...] = ()
    """Command that writes the model into `{out}`: the first word is a program of the environment,
    `{weights}` and `{work}` are replaced. Ours are written by `ours.write_engine`."""
    file: str = ""
    """What the worker is given, below `model`; empty for all of it."""
    backend: str = ""
    """For the worker: an attention backend, or the engine."""

    @property
    def worker(self) -> str:
        """Module that runs it."""
        return f"samples.peers.workers.run_{self.home}"


def _ours(engine: str, precision: str) -> System:
    name = f"laco {engine} {precision}"
    return System(
        name=name,
        home=OURS,
        model=f"laco-{engine}-{precision}",
        weights=precision,
        against=name,
        backend=engine,
    )


def _openvino_genai(precision: str, backend: str, *options: str) -> System:
    return System(
        name=f"openvino_genai {backend} {precision}",
        home="openvino_genai",
        model=f"openvino_genai-{precision}",
        weights=precision,
        against=f"laco openvino {precision}",
        make=(
            *("optimum-cli", "export", "openvino", "--task", "text-generation-with-past"),
            *("--weight-format", precision, *options, "--model", "{weights}", "{out}"),
        ),
        backend=backend,
    )


def _onnxruntime_genai(precision: str) -> System:
    return System(
        name=f"onnxruntime_genai {precision}",
        home="onnxruntime_genai",
        model=f"onnxruntime_genai-{precision}",
        weights=precision,
        against=f"laco onnxruntime {precision}",
        make=(
            *("python", "-m", "onnxruntime_genai.models.builder", "-e", "cpu", "-p", precision),
            *("-i", "{weights}", "-o", "{out}", "-c", "{work}/builder-cache"),
        ),
    )


def _llama_cpp(kind: str, precision: str) -> System:
    return System(
        name=f"llama.cpp {kind}",
        home="llama_cpp",
        model=f"llama_cpp-{kind}",
        weights=kind,
        against=f"laco openvino {precision}",
        make=(
            *("python", "-m", "samples.peers.workers.write_gguf"),
            *("{weights}", "{out}/model.gguf", kind),
        ),
        file="model.gguf",
    )


SYSTEMS: tuple[System, ...] = (
    _ours("openvino", "int8"),
    _ours("openvino", "int4"),
    _ours("onnxruntime", "int8"),
    _ours("onnxruntime", "int4"),
    _openvino_genai("int8", "SDPA"),
    _openvino_genai("int8", "PA"),
    _openvino_genai("int4", "PA", "--group-size", "64", "--ratio", "1.0"),
    _onnxruntime_genai("int8"),
    _onnxruntime_genai("int4"),
    _llama_cpp("Q8_0", "int8"),
    _llama_cpp("Q4_0", "int4"),
)

PEERS: tuple[str, ...] = tuple(ENVIRONMENTS)


def chosen(peers: tuple[str, ...]) -> tuple[System, ...]:
    """The systems of some peers, and those of ours that they are held against."""
    theirs = [system for system in SYSTEMS if system.home in peers]
    needed = {system.against for system in theirs}
    return tuple(s for s in SYSTEMS if s in theirs or s.name in needed)


__all__ = ["ENVIRONMENTS", "OURS", "PEERS", "SYSTEMS", "Environment", "System", "chosen"]
