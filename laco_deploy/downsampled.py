"""The uncompressed encoder on a smaller image: as few visual tokens without any merger.

The same patches cover more of the scene each. Positions are resampled to the smaller grid as for
any other resolution; a tower whose positions this file does not know is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laco_deploy.model.config import LacoConfig, VisionConfig, square_side
from laco_deploy.model.modeling import LacoForConditionalGeneration
from laco_deploy.model.vision import LacoVisionEncoder
from laco_runtimes.errors import ConfigError

Grid = tuple[int, int]


class DownsampledEncoder(nn.Module):
    """Pixels of the model's own size, made smaller, through the trained tower without mergers.

    The picture is scaled inside, by two constant matrices, so that the encoder takes what every
    other one of a bundle takes: what making an image smaller costs is in the time of this one.

    Args:
        config: of the trained model.
        model: whose weights are used; only the positions are copied, and resampled.

    Raises:
        ConfigError: the tower's positions cannot be resampled, or the tokens are no square.
    """

    def __init__(self, config: LacoConfig, model: LacoForConditionalGeneration) -> None:
        super().__init__()
        vision = smaller_vision(config)
        values = {**config.to_dict(), "vision_config": vision.to_dict(), "mergers": []}
        smaller = LacoConfig.from_dict(values)
        with torch.device("meta"):  # no memory: the tower is the trained one
            self.encoder = LacoVisionEncoder(smaller)
        self.encoder.tower = _resampled_tower(config, smaller, model.model.vision_encoder.tower)
        self.projector = model.model.projector
        matrix = downsampling(config.image_size, smaller.image_size)
        self.register_buffer("matrix", matrix.to(model.model.projector.linear_1.weight.device))

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """[tiles, 3, S, S] -> [tiles, N', D]."""
        matrix = cast(Tensor, self.matrix).to(pixel_values.dtype)  # [S, S']
        rows = (pixel_values @ matrix).transpose(-1, -2)  # [tiles, 3, S', S]
        smaller = (rows @ matrix).transpose(-1, -2)  # [tiles, 3, S', S']
        return self.projector(self.encoder(smaller))  # type: ignore[no-any-return]


def smaller_vision(config: LacoConfig) -> VisionConfig:
    """The tower's configuration for an image of as many patches as the model has visual tokens.

    Raises:
        ConfigError: as `DownsampledEncoder`.
    """
    model_type, grid = config.vision.model_type, config.merged_grid
    if model_type not in POSITIONS:
        raise ConfigError(
            f"positions of a {model_type!r} cannot be resampled here, so that it has no baseline "
            f"'downsampled'. Leave it out; those that can be are: {', '.join(sorted(POSITIONS))}."
        )
    if grid[0] != grid[1]:
        raise ConfigError(
            f"{grid[0]}x{grid[1]} visual tokens are those of no square image, so that there is no "
            "baseline 'downsampled'. Leave it out."
        )
    values = config.vision.to_dict()
    side = grid[0] * square_side(config.vision.patch_size)
    values["image_size"] = side if isinstance(values["image_size"], int) else [side, side]
    return type(config.vision).from_dict(values)


def downsampling(size: int, smaller: int) -> Tensor:
    """[S, S'] so that rows of S pixels times it are rows of S', bilinear with antialiasing."""
    identity = torch.eye(size)[None]  # [1, S, S]: each row one pixel
    found = F.interpolate(
        identity[:, None], size=(size, smaller), mode="bilinear", antialias=True
    )  # rows stay as they are
    return found[0, 0]


def resample(positions: Tensor, before: Grid, after: Grid) -> Tensor:
    """Learned positions [N, C] of one grid for another, bicubic with antialiasing: [N', C]."""
    grid = positions.reshape(1, *before, -1).permute(0, 3, 1, 2)  # [1, C, H, W]
    fitted = F.interpolate(grid.float(), size=after, mode="bicubic", antialias=True)
    return fitted.permute(0, 2, 3, 1).flatten(0, 2).to(positions.dtype)


def _of_patches(name: str) -> Callable[[dict[str, Tensor], Grid, Grid], None]:
    """For towers with one row per patch."""

    def fit(state: dict[str, Tensor], before: Grid, after: Grid) -> None:
        if name in state:  # AIMv2 native computes its positions
            state[name] = resample(state[name], before, after)

    return fit


def _behind_cls(name: str) -> Callable[[dict[str, Tensor], Grid, Grid], None]:
    """For towers whose first row is that of CLS, [1, 1 + N, C]."""

    def fit(state: dict[str, Tensor], before: Grid, after: Grid) -> None:
        if name in state:
            cls, patches = state[name][:, :1], state[name][0, 1:]
            state[name] = torch.cat([cls, resample(patches, before, after)[None]], dim=1)

    return fit


POSITIONS: Mapping[str, Callable[[dict[str, Tensor], Grid, Grid], None]] = {
    "aimv2_vision_model": _of_patches("position_embedding.weight"),
    "internvl_vision": _behind_cls("position_embeddings"),
    "siglip_vision_model": _of_patches("position_embedding.weight"),
}
"""How the positions among a tower's embeddings are fitted to another grid, by `model_type`."""


def _resampled_tower(config: LacoConfig, smaller: LacoConfig, trained: nn.Module) -> nn.Module:
    """The trained tower, its weights shared, with embeddings for the smaller image."""
    tower: Any = copy.deepcopy(trained, {id(one): one for one in _tensors(trained)})
    with torch.no_grad():
        state = dict(tower.embeddings.state_dict())
        POSITIONS[config.vision.model_type](state, config.patch_grid, smaller.patch_grid)
        embeddings = type(tower.embeddings)(smaller.vision)
        embeddings.load_state_dict(state, assign=True)
    # Positions are numbered on the CPU wherever the weights are.
    embeddings.to(next(trained.parameters()).device).train(trained.training)
    tower.embeddings = embeddings
    return tower  # type: ignore[no-any-return]


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


__all__ = ["POSITIONS", "DownsampledEncoder", "downsampling", "resample", "smaller_vision"]
