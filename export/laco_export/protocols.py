"""What the exporter asks of a model: torch modules with these parts, and answers to compare with.

Nothing here knows a checkpoint or a configuration; `laco_deploy.exporting` brings both together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # these are words for types, and torch takes seconds to import
    from torch import Tensor, nn

Floats = NDArray[np.float32]
Size = tuple[int, int]
"""(height, width)."""


@runtime_checkable
class ImageEncoder(Protocol):
    """A vision encoder with its projector; an `nn.Module`."""

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """[tiles, 3, S, S] -> [tiles, N', D]."""


class RmsNorm(Protocol):
    """Root mean square normalisation over the last axis."""

    weight: Tensor
    variance_epsilon: float


class SelfAttention(Protocol):
    """Projections of one attention layer."""

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear


class DecoderLayer(Protocol):
    """One pre-norm decoder layer."""

    input_layernorm: RmsNorm
    self_attn: SelfAttention
    post_attention_layernorm: RmsNorm
    mlp: nn.Module


class DecoderLayers(Protocol):
    """The layers in order; an `nn.ModuleList`."""

    def __iter__(self) -> Iterator[DecoderLayer]:
        """First layer first."""


class LanguageBody(Protocol):
    """A Qwen2-shaped language model without its head."""

    embed_tokens: nn.Embedding
    layers: DecoderLayers
    norm: RmsNorm


@dataclass(frozen=True, slots=True)
class GreedyAnswer:
    """What the reference generates, and the logits by which each token was chosen."""

    features: Floats
    """Its visual tokens, [tiles, N', D]."""
    tokens: tuple[int, ...]
    """The answer, and what the model would go on with behind its stop token."""
    logits: Floats
    """[tokens, V]."""


class Reference(Protocol):
    """The PyTorch model that an exported engine is compared with."""

    def preprocess(self, image: NDArray[np.uint8]) -> Floats:
        """An RGB image [H, W, 3] to pixel values [tiles, 3, S, S], by the checkpoint's processor.

        The image is alone in its prompt.
        """

    def logits_at(
        self,
        pixel_values: Floats,
        ids: Sequence[int],
        positions: Sequence[int],
        size: Size | None = None,
    ) -> Floats:
        """Logits at some positions of one pass over all of `ids`, [positions, V].

        Args:
            pixel_values: of one image, [tiles, 3, S, S].
            ids: with a place for each visual token.
            positions: in `ids`.
            size: (height, width) of the image in pixels; needed where it has several tiles.
        """

    def greedy(
        self,
        pixel_values: Floats,
        ids: Sequence[int],
        max_new_tokens: int,
        size: Size | None = None,
    ) -> GreedyAnswer:
        """The free greedy continuation of a prompt, of full length: stop tokens do not end it."""


__all__ = [
    "DecoderLayer",
    "Floats",
    "GreedyAnswer",
    "ImageEncoder",
    "LanguageBody",
    "Reference",
    "RmsNorm",
    "SelfAttention",
    "Size",
]
