"""TensorRT and TensorRT-RTX: plans built on this machine from the bundle's ONNX.

The bundle carries graphs, never plans: a plan is native code (see `laco_runtimes.plans`). The first
load builds them, which takes from seconds to minutes; later loads find them. The KV cache never
leaves the GPU, and a decoding step is one CUDA graph.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from laco_runtimes import graphs, selftest
from laco_runtimes.engines.base import (
    Capabilities,
    Floats,
    LoadedEngine,
    LoadRequest,
    cannot_score,
    check_rewind,
    engine_errors,
)
from laco_runtimes.engines.tensorrt_cache import CACHES, KvCache, make_cache
from laco_runtimes.engines.tensorrt_device import Device, DeviceBuffer, open_device
from laco_runtimes.engines.tensorrt_run import Binding, Execution, LoadedPlan, Replay
from laco_runtimes.errors import ArgumentError, BundleError, EngineError
from laco_runtimes.graphs import DecoderForm, GraphSpec
from laco_runtimes.manifest import MAIN_VARIANT, BundleFacts
from laco_runtimes.plan_builder import BuildSettings, build_plan
from laco_runtimes.plan_products import PRODUCTS, Namespace, Product, import_product
from laco_runtimes.plan_profiles import (
    MAX_TILES,
    PREFILL,
    STEP,
    context_size,
    make_profiles,
    piece_size,
)
from laco_runtimes.plans import PlanCache, PlanFacts, StoredPlan

logger = logging.getLogger("laco")

RETRY = "Check the free memory of the GPU, or start a new dialogue."

JETSON_WORKSPACE = 2**30
"""Where GPU and CPU share their memory, a build takes no more than this beside the weights."""


def load(request: LoadRequest) -> LoadedEngine:
    """Find or build the three plans, and read them.

    Raises:
        ArgumentError: CPU threads asked of a GPU.
        BundleError: a decoder in a form that is for other engines.
        EngineError: no such GPU, a graph that cannot be built, or a plan that is refused.
        MissingPackageError: a package is not installed.
    """
    if request.threads is not None:
        raise ArgumentError("threads are for the CPU, not a GPU. Leave them out.")
    flavour = request.manifest.decoder_flavour
    if flavour not in CACHES:
        raise BundleError(
            f"the bundle's decoder is {flavour!r}, and TensorRT runs {' or '.join(CACHES)}. "
            "Export the model again."
        )
    product = PRODUCTS[request.manifest.target]
    trt = import_product(product)
    return load_on(open_device(request.device), trt, product, PlanCache(), request)


def load_on(
    device: Device, trt: Namespace, product: Product, cache: PlanCache, request: LoadRequest
) -> LoadedEngine:
    """As `load`, on a device that is open already."""
    device.activate()
    manifest = request.manifest
    maker = _PlanMaker(device, trt, product, cache, request)
    context = context_size(manifest)
    form = DecoderForm(manifest.decoder_flavour, manifest.cache_dtype, context)
    language = manifest.language
    vision, embed, decoder = (
        maker.plan(spec, path)
        for spec, path in (
            (
                graphs.vision_encoder(
                    manifest.vision.image_size,
                    request.variant.tokens_per_tile,
                    language.hidden_size,
                ),
                request.variant.vision_encoder,
            ),
            (graphs.embed_tokens(language.hidden_size), manifest.embed_tokens),
            (graphs.decoder(language, form), manifest.decoder),
        )
    )
    engine = LoadedEngine(
        vision=_Vision(vision),
        language=_Language(embed, decoder, make_cache(device, language, form, context), context),
        device=f"cuda:{device.facts.index} ({device.facts.name})",
        reason=maker.reason(),
        # Plans are built for the logits of the last position.
        capabilities=Capabilities(scores=False, rewinds=True, batches_tiles=True),
    )
    maker.check_answers(engine)
    return engine


@dataclass(slots=True)
class _PlanMaker:
    device: Device
    trt: Namespace
    product: Product
    cache: PlanCache
    request: LoadRequest
    made: list[tuple[PlanFacts, StoredPlan]] = field(default_factory=list)

    def plan(self, spec: GraphSpec, onnx: str) -> LoadedPlan:
        settings = self._settings(spec)
        facts = PlanFacts(
            module=spec.name,
            product=self.product.name,
            version=str(self.trt.__version__),
            compute_capability=self.device.facts.compute_capability,
            device=self.device.facts.name,
            driver=self.device.facts.driver,
            precision=self.request.manifest.precision[spec.name],
            profiles=repr((settings.profiles, settings.workspace_bytes)),
            onnx=_digests(self.request, onnx),
        )
        stored: StoredPlan = self.cache.get(
            facts, lambda: build_plan(self.product, self.request.root / onnx, settings, _told())
        )
        self.made.append((facts, stored))
        return LoadedPlan(self.trt, self.device, stored.data, spec)

    def reason(self) -> str:
        fresh = sum(stored.fresh for _, stored in self.made)
        built = f"{fresh} of {len(self.made)} plans built now" if fresh else "plans built before"
        return f"{self.product.title} {self.trt.__version__}, {built}"

    def check_answers(self, engine: LoadedEngine) -> None:
        """Hold plans that nobody has checked yet against the answers stored in the bundle.

        Fused kernels were wrong before, without an error (NVIDIA/TensorRT 4837, 4333), and most
        exports happen where no GPU is.

        Raises:
            EngineError: they answer otherwise; they are removed from the cache.
        """
        facts, root = self.request.manifest, self.request.root
        if all(stored.verified for _, stored in self.made) or not selftest.has_selftest(root):
            return
        if not isinstance(facts, BundleFacts) or self.request.variant.name != MAIN_VARIANT:
            return  # the export compares by itself; a baseline has no answers
        found = selftest.run_selftest(engine, root, facts)
        for plan, _ in self.made:
            if found.passed:
                self.cache.mark_verified(plan)
            else:
                self.cache.discard(plan)
        if not found.passed:
            raise EngineError(
                f"on {engine.device} the model does not answer as it did when it was exported: "
                f"{found}. Export it with --precision exact, or for onnxruntime."
            )
        logger.info("self-test on %s: %s", engine.device, found)

    def _settings(self, spec: GraphSpec) -> BuildSettings:
        small = self.device.facts.integrated
        return BuildSettings(
            make_profiles(
                spec,
                context_size(self.request.manifest),
                # RTX chooses its kernels while it runs, and would store the weights twice.
                apart=not (self.product.portable or small),
            ),
            workspace_bytes=JETSON_WORKSPACE if small else None,
            compute_capabilities=("CURRENT",) if self.product.portable else (),
            timing_cache=self.cache.folder / _timing_cache_name(self.device, self.trt),
        )


def _timing_cache_name(device: Device, trt: Namespace) -> str:
    """Times of kernels are worth something to the same version on the same GPU and driver only."""
    facts = device.facts
    key = repr((trt.__version__, facts.compute_capability, facts.name, facts.driver))
    return f"timing-{hashlib.sha256(key.encode()).hexdigest()[:16]}.cache"


def _told() -> Callable[[str, int, int], bool]:
    def note(phase: str, done: int, total: int) -> bool:
        logger.debug("%s: %d of %d", phase, done, total)
        return True

    return note


def _digests(request: LoadRequest, onnx: str) -> dict[str, str]:
    """SHA-256 of a graph and its weights: from the sealed manifest, which was checked, or read."""
    listed = {one.path: one.sha256 for one in getattr(request.manifest, "files", ())}
    found = {}
    for name in (onnx, f"{onnx}.data"):
        path: Path = request.root / name
        if name in listed:
            found[name] = listed[name]
        elif path.is_file():  # a bundle that is not sealed yet
            with path.open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


class _Vision:
    def __init__(self, plan: LoadedPlan) -> None:
        self._device, self._run = plan.device, Execution(plan)
        self._pixels, self._features = (
            _Tensor(plan.device, (MAX_TILES, *one.dims[1:]))
            for one in (plan.spec.inputs[0], plan.spec.outputs[0])
        )

    def encode(self, pixel_values: Floats) -> Floats:
        pixels = np.ascontiguousarray(pixel_values, np.float32)
        with engine_errors("encoding the image with TensorRT", RETRY):
            self._device.activate()
            pieces = [
                self._encode(pixels[start : start + MAX_TILES])
                for start in range(0, len(pixels), MAX_TILES)
            ]
        return np.concatenate(pieces)  # [tiles, N', D]

    def _encode(self, pixels: Floats) -> Floats:
        features = np.empty((len(pixels), *self._features.shape[1:]), np.float32)
        self._device.upload(pixels, self._pixels.buffer)
        self._run.bind(
            {
                "pixel_values": Binding(self._pixels.buffer, pixels.shape),
                "image_features": Binding(self._features.buffer, features.shape),
            }
        )
        self._run.enqueue()
        self._device.download(self._features.buffer, features)
        return features


class _Language:
    """Embedding and decoder; a step runs both, so that a token's embedding stays on the GPU."""

    def __init__(
        self, embed: LoadedPlan, decoder: LoadedPlan, cache: KvCache, context: int
    ) -> None:
        self._device, self._cache, self._context = decoder.device, cache, context
        self._piece = piece_size(context)
        apart = decoder.engine.num_optimization_profiles > 1
        # Apart also where there is one profile: what is recorded of a step stays valid then.
        self._prefill = Execution(decoder, PREFILL)
        self._step = Execution(decoder, STEP if apart else PREFILL)
        self._embed, self._embed_one = Execution(embed), Execution(embed)
        self._inputs = {
            one.name: _Tensor(self._device, self._largest(one.dims), one.dtype)
            for one in (*embed.spec.inputs, *decoder.spec.inputs)
            if not one.name.startswith("past_key_values.")
        }
        logits = decoder.spec.outputs[0]
        self._logits = _Tensor(self._device, self._largest(logits.dims))
        self._replay = Replay(self._device, self._work, self._step.can_be_recorded)
        self._length = 0

    @property
    def length(self) -> int:
        return self._length

    def embed(self, ids: Sequence[int]) -> Floats:
        width = self._inputs["inputs_embeds"].shape[-1]
        embeds = np.empty((len(ids), width), np.float32)
        with engine_errors("embedding tokens with TensorRT", RETRY):
            self._device.activate()
            for start in range(0, len(ids), self._piece):
                some = np.asarray([ids[start : start + self._piece]], np.int64)
                self._bind_embed(self._embed, some)
                self._embed.enqueue()
                rows = embeds[start : start + some.size]
                self._device.download(self._inputs["inputs_embeds"].buffer, rows)
        return embeds  # [len(ids), D]

    def prefill(self, embeds: Floats) -> Floats:
        self._check_room(len(embeds))
        with engine_errors("decoding with TensorRT", RETRY):
            self._device.activate()
            for start in range(0, len(embeds), self._piece):
                some = np.ascontiguousarray(embeds[None, start : start + self._piece], np.float32)
                self._device.upload(some, self._inputs["inputs_embeds"].buffer)
                self._bind_decoder(self._prefill, some.shape[1])
                self._prefill.enqueue()
                self._finish(some.shape[1])
            return self._read_logits()

    def step(self, token: int) -> Floats:
        self._check_room(1)
        with engine_errors("decoding with TensorRT", RETRY):
            self._device.activate()
            self._bind_embed(self._embed_one, np.array([[token]], np.int64))
            self._bind_decoder(self._step, 1)
            if self._cache.replays:
                self._replay.run((self._embed_one.bound, self._step.bound))
            else:
                self._work()
            self._finish(1)
            return self._read_logits()

    def score(self, tokens: Sequence[int]) -> Floats:
        raise cannot_score()

    def rewind(self, length: int) -> None:
        check_rewind(length, self._length)
        if 0 < length < self._length:
            with engine_errors("shortening the KV cache with TensorRT", "Start a new dialogue."):
                self._device.activate()
                self._cache.shorten(self._length, length)
        self._length = length

    def _work(self) -> None:
        """A step, on the stream: the embedding writes what the decoder reads."""
        self._embed_one.enqueue()
        self._step.enqueue()

    def _bind_embed(self, execution: Execution, ids: np.ndarray) -> None:
        output = self._inputs["inputs_embeds"]
        self._device.upload(ids, self._inputs["input_ids"].buffer)
        execution.bind(
            {
                "input_ids": Binding(self._inputs["input_ids"].buffer, ids.shape),
                "inputs_embeds": Binding(output.buffer, (*ids.shape, output.shape[-1])),
            }
        )

    def _bind_decoder(self, execution: Execution, new: int) -> None:
        """Upload what is small and say where all of it lies; the embeddings are there already."""
        embeds = self._inputs["inputs_embeds"]
        bindings = self._cache.bindings(self._length, new)
        bindings["inputs_embeds"] = Binding(embeds.buffer, (1, new, embeds.shape[-1]))
        bindings["logits"] = Binding(self._logits.buffer, self._logits.shape)
        for name, array in self._cache.inputs(self._length, new).items():
            self._device.upload(np.ascontiguousarray(array), self._inputs[name].buffer)
            bindings[name] = Binding(self._inputs[name].buffer, array.shape)
        execution.bind(bindings)

    def _finish(self, new: int) -> None:
        self._cache.advance()
        self._length += new

    def _read_logits(self) -> Floats:
        logits = np.empty(self._logits.shape, np.float32)  # [1, 1, V]
        self._device.download(self._logits.buffer, logits)
        row: Floats = logits[0, -1]
        return row

    def _check_room(self, new: int) -> None:
        if not 0 < new <= self._context - self._length:
            raise EngineError(
                f"the KV cache holds {self._length} of at most {self._context} tokens, and {new} "
                "more were asked for. Use a shorter prompt, or export with a larger context."
            )

    def _largest(self, dims: Sequence[graphs.Dim]) -> tuple[int, ...]:
        sizes = {"batch": 1, "sequence": self._piece, "total": self._context}
        return tuple(dim if isinstance(dim, int) else sizes[dim] for dim in dims)


class _Tensor:
    """Memory for the largest shape of an input or output."""

    def __init__(self, device: Device, shape: Sequence[graphs.Dim], dtype: str = "float32") -> None:
        self.shape = tuple(int(dim) for dim in shape)
        nbytes = int(np.prod(self.shape)) * np.dtype(dtype).itemsize
        self.buffer: DeviceBuffer = device.allocate(nbytes)


__all__ = ["load", "load_on"]
