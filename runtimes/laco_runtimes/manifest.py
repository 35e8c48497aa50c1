"""`laco.json`: everything a runtime needs to know about a bundle, as a strict schema."""

from __future__ import annotations

from itertools import chain
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from laco_runtimes.images import Preprocessing
from laco_runtimes.prompt import PromptTemplate
from laco_runtimes.tiling import ImageMode, TokenLayout

MANIFEST_NAME = "laco.json"
TOKENIZER_NAME = "tokenizer.json"
NEWLINE_NAME = "image_newline.npy"
"""The vector `image_newline` of the model, [D] of float32; only where the model has one."""
FORMAT_VERSION: Final = 3
"""Of what is written."""
OLDEST_FORMAT: Final = 2
"""Of what is still read: 2 had no `layout`."""
MAIN_VARIANT = "laco"

FlavourName = Literal["stateful", "static", "contrib", "concat"]
CacheDType = Literal["float32", "float16", "bfloat16"]
Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# One flat rule for every path in a bundle: relative, plain names, no way up or out.
RelativePath = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$"),
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FileEntry(_Strict):
    """One file of the bundle; `size` in bytes."""

    path: RelativePath
    size: Annotated[int, Field(ge=0)]
    sha256: Sha256


class LanguageFacts(_Strict):
    """Shapes of the language model's graphs and of its KV cache."""

    model_type: str
    layers: Count
    hidden_size: Count
    """D."""
    heads: Count
    """Query heads."""
    kv_heads: Count
    head_dim: Count
    vocab_size: Count
    max_positions: Count
    """Longest prompt plus answer, in tokens."""


class VisionFacts(_Strict):
    """The encoder before any merger."""

    model_type: str
    blocks: Count
    """L."""
    width: Count
    """C."""
    image_size: Count
    patch_size: Count


class MergerFacts(_Strict):
    """One merger: `ratio` x `ratio` tokens become one after block `after_block` (from 1)."""

    kind: str
    after_block: Count
    ratio: Annotated[int, Field(ge=2)]


class Variant(_Strict):
    """One vision encoder of the bundle; the language model is shared by all."""

    name: str
    mergers: tuple[MergerFacts, ...]
    merged_grid: tuple[Count, Count]
    """(H', W') of the visual tokens of one tile."""
    vision_encoder: RelativePath
    """The file the target's engine loads."""
    latency_only: bool
    """True for a baseline whose weights were not trained this way: right about time, not words."""

    @property
    def tokens_per_tile(self) -> int:
        """N'."""
        return self.merged_grid[0] * self.merged_grid[1]


class ImageLayout(_Strict):
    """How images become tiles and their tokens the visual tokens of a prompt.

    Without any settings, every image is one tile and its tokens are all there is.
    """

    image_mode: ImageMode = "square"
    """`anyres` cuts an image that is alone in its prompt into tiles."""
    newline: bool = False
    """Whether `image_newline` ends each row of a detail map, each image of one tile, each video."""
    max_tiles: Count = 9
    """Of a detail map, at most about as many tokens as so many tiles have."""
    video_pool_stride: Count = 1
    """Factor by which the sides of a video frame are pooled."""

    @property
    def one_tile(self) -> bool:
        """Whether an image is one tile and nothing else, as most other runtimes show it."""
        return self.image_mode == "square" and not self.newline


class Noise(_Strict):
    """How far the reference is from itself: the same question again, and with another number of
    threads. Smaller differences of an engine say nothing."""

    repeated_logits: NotNegative
    """Largest absolute difference of a logit when asked twice."""
    threads_logits: NotNegative
    """The same with one thread."""
    threads_cosine_min: float
    """Least cosine of a visual token with one thread."""


class Check(_Strict):
    """One figure of the comparison, and what was asked of it."""

    stage: Literal["preprocessing", "onnx", "vision_encoder", "language"]
    """Where it was measured: `preprocessing` against the processor of the checkpoint, `onnx` the
    fp32 graphs against PyTorch, the other two the target engine against the fp32 graphs."""
    measure: str
    """A key of `laco_export.parity.measures.MEASURES`."""
    found: float
    wanted: Literal["at least", "at most", "report"]
    limit: float | None = None
    """None where the figure is only reported."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.limit is None) != (self.wanted == "report"):
            raise ValueError(f"{self.measure}: a limit and how it is meant belong together")
        return self

    @property
    def met(self) -> bool:
        """Whether the figure is as asked; one that is not a number never is."""
        if self.limit is None:
            return True
        if self.wanted == "at least":
            return self.found >= self.limit
        return self.found <= self.limit


class Parity(_Strict):
    """What the export's comparison found, on the target engine."""

    images: Count
    """Images whose visual tokens were compared."""
    adversarial_images: Annotated[int, Field(ge=0)]
    """Of these: blank, noise, tiny text, extreme shapes."""
    prompts: Count
    answered_images: Count
    """Images behind which logits and an answer were compared."""
    greedy_tokens: Count
    """Tokens compared per answer, past any stop token; fewer where the context ends."""
    greedy_identical: Annotated[int, Field(ge=0)]
    """Answers that are the reference's, token for token."""
    ties: Annotated[int, Field(ge=0)]
    """Positions with another likeliest token where the reference's best two were as good as equal.
    They count as agreement."""
    checks: tuple[Check, ...]
    noise: Noise | None = None
    """None where it was not measured."""

    def found(self, stage: str, measure: str) -> float:
        """One figure; NaN where it was not measured."""
        for check in self.checks:
            if (check.stage, check.measure) == (stage, measure):
                return check.found
        return float("nan")

    @property
    def visual_token_cosine_min(self) -> float:
        """Least cosine of a visual token of the engine with the fp32 graph's."""
        return self.found("vision_encoder", "cosine_min")

    @property
    def visual_token_cosine_mean(self) -> float:
        """Mean of these cosines."""
        return self.found("vision_encoder", "cosine_mean")

    @property
    def logits_max_abs_difference(self) -> float:
        """Largest absolute difference of a logit of the engine from the fp32 graph's."""
        return self.found("language", "logits_max")

    @property
    def summary(self) -> str:
        """One line for a screen."""
        return (
            f"{self.greedy_identical} of {self.answered_images} answers identical, "
            f"cosine of a visual token at least {self.visual_token_cosine_min:.6f} on "
            f"{self.images} images, logits differ by at most {self.logits_max_abs_difference:.1e}"
        )


class EngineFacts(_Strict):
    """What an engine must know to load the graphs of a folder, sealed or not."""

    target: str
    """Name of the engine it was compiled for: `onnxruntime`, `openvino`."""
    precision: dict[str, str]
    """Precision of the weights of `vision_encoder`, `embed_tokens` and `decoder`."""
    decoder_flavour: FlavourName = "stateful"
    """Form of the decoder's attention and KV cache."""
    cache_dtype: CacheDType = "float32"
    """Type of the KV cache where it is an input and output; all else that goes in and out of the
    graphs is float32 or int64 in every precision."""
    cache_capacity: Count | None = None
    """Tokens that a KV cache of static size holds."""
    language: LanguageFacts
    vision: VisionFacts
    embed_tokens: RelativePath
    decoder: RelativePath

    @model_validator(mode="after")
    def _consistent_engine(self) -> Self:
        if missing := sorted({"vision_encoder", "embed_tokens", "decoder"} - set(self.precision)):
            raise ValueError(f"precision of {missing[0]!r} is not given")
        return self


class BundleFacts(EngineFacts):
    """What an exporter knows before the bundle is sealed: all of `laco.json` but the file list."""

    format_version: Literal[2, 3]
    created_by: str
    preprocessing: Preprocessing
    layout: ImageLayout = ImageLayout()
    prompt: PromptTemplate
    variants: tuple[Variant, ...]
    parity: Parity | None
    unverified: str | None = None
    """Why nothing was compared, where nothing was: a whole sentence's worth, without its dot."""
    versions: dict[str, str]
    """Packages that wrote the bundle."""

    @model_validator(mode="after")
    def _consistent_facts(self) -> Self:
        names = [variant.name for variant in self.variants]
        if not names or names[0] != MAIN_VARIANT or len(set(names)) != len(names):
            raise ValueError(f"variants must be distinct and begin with {MAIN_VARIANT!r}")
        if (self.parity is None) == (self.unverified is None):
            raise ValueError("a bundle has parity or a reason why it is unverified, one of the two")
        template = self.prompt
        segments = (template.system, template.user_open, template.after_image, template.user_close)
        ids = {
            template.image_token_id,
            *template.stop,
            *template.assistant_close,
            *chain(*segments),
        }
        if outside := sorted(index for index in ids if not 0 <= index < self.language.vocab_size):
            raise ValueError(f"prompt has id {outside[0]}, which is outside the vocabulary")
        if self.preprocessing.image_size != self.vision.image_size:
            raise ValueError("preprocessing and vision encoder differ in image_size")
        if self.format_version == OLDEST_FORMAT and self.layout != ImageLayout():
            raise ValueError(f"format {OLDEST_FORMAT} has no layout")
        return self

    def said_tokens(self, variant: Variant) -> str:
        """For people: how many visual tokens an image becomes, or each of its tiles."""
        if self.layout.image_mode == "anyres":
            return f"{variant.tokens_per_tile} visual tokens per tile"
        return f"{variant.tokens_per_tile + self.layout.newline} visual tokens per image"

    def token_layout(self, variant: Variant) -> TokenLayout:
        """How the tokens of tiles become visual tokens, for one vision encoder of the bundle."""
        return TokenLayout(
            image_size=self.vision.image_size,
            merged_grid=variant.merged_grid,
            image_mode=self.layout.image_mode,
            max_tiles=self.layout.max_tiles,
            newline=self.layout.newline,
            video_pool_stride=self.layout.video_pool_stride,
        )


class Manifest(BundleFacts):
    """The whole of `laco.json`.

    Raises:
        pydantic.ValidationError: unknown or missing keys, values out of range, a path that leaves
            the bundle, or a graph or tokenizer that is not in the list of files.
    """

    files: tuple[FileEntry, ...]
    """Every file of the bundle but this one."""

    @model_validator(mode="after")
    def _consistent_files(self) -> Self:
        listed = [entry.path for entry in self.files]
        if len(set(listed)) != len(listed):
            raise ValueError("a file is listed twice")
        graphs = [self.embed_tokens, self.decoder, *(v.vision_encoder for v in self.variants)]
        if missing := sorted({TOKENIZER_NAME, *graphs} - set(listed)):
            raise ValueError(f"{missing[0]!r} is not in the list of files")
        if self.layout.newline != (NEWLINE_NAME in listed):
            raise ValueError(f"layout.newline and {NEWLINE_NAME!r} belong together")
        return self


__all__ = [
    "FORMAT_VERSION",
    "MAIN_VARIANT",
    "MANIFEST_NAME",
    "NEWLINE_NAME",
    "OLDEST_FORMAT",
    "TOKENIZER_NAME",
    "BundleFacts",
    "CacheDType",
    "Check",
    "EngineFacts",
    "FileEntry",
    "FlavourName",
    "ImageLayout",
    "LanguageFacts",
    "Manifest",
    "MergerFacts",
    "Noise",
    "Parity",
    "Variant",
    "VisionFacts",
]
