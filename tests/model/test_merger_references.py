"""Every merger against its published form: modules of transformers and torch, or plain numpy.

References read the weights of the merger under test, never its code; weights and biases are random
throughout, so that no layer is silent.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import InternVLConfig, InternVLModel
from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector
from transformers.models.qwen2_vl.modeling_qwen2_vl import PatchMerger as Qwen2VLPatchMerger

from laco_deploy.model.merger_spec import MergerKind, MergerNorm, MergerShortcut, MergerSpec
from laco_deploy.model.mergers import Merger, build_merger
from laco_deploy.model.mergers.c_abstractor import RegBlock
from laco_deploy.model.mergers.token_packer import downscaled

GRID = (12, 24)
WIDTH = 16
Array = NDArray[np.float64]


def tokens(grid: tuple[int, int] = GRID, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, grid[0] * grid[1], WIDTH, generator=generator)


def random_merger(
    kind: MergerKind,
    ratio: int,
    *,
    shortcut: MergerShortcut | None = None,
    norm: MergerNorm | None = None,
) -> Merger:
    spec = MergerSpec(after_block=1, kind=kind, ratio=ratio, shortcut=shortcut, norm=norm)
    merger = build_merger(spec, WIDTH, GRID)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in merger.named_parameters():
            centre = 1.0 if "norm" in name and "weight" in name else 0.0
            weight.copy_(centre + 0.3 * torch.randn(weight.shape, generator=generator))
    return merger


def image(flat: Tensor, grid: tuple[int, int] = GRID) -> Tensor:
    """[B, H * W, C] -> [B, C, H, W]."""
    return flat.transpose(1, 2).reshape(flat.shape[0], flat.shape[2], *grid)


def flat(pixels: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H * W, C]."""
    return pixels.flatten(2).transpose(1, 2)


def windows(flat_tokens: Tensor, ratio: int) -> Tensor:
    """[B, H * W, C] -> [B, N', r * r, C], one window after the other, cut out in plain loops."""
    whole = flat_tokens.reshape(-1, *GRID, flat_tokens.shape[2])
    cut = [
        whole[:, top : top + ratio, left : left + ratio].flatten(1, 2)
        for top in range(0, GRID[0], ratio)
        for left in range(0, GRID[1], ratio)
    ]
    return torch.stack(cut, dim=1)


def close(found: Tensor, expected: Tensor | Array) -> None:
    wanted = torch.as_tensor(expected).detach().double().numpy()
    assert np.abs(wanted).max() > 0.1  # or agreement would mean little
    np.testing.assert_allclose(found.detach().double().numpy(), wanted, rtol=0, atol=1e-5)


def np_linear(x: Array, layer: nn.Linear) -> Array:
    weight, bias = (value.detach().double().numpy() for value in (layer.weight, layer.bias))
    return np.asarray(x @ weight.T + bias)


def np_layer_norm(x: Array, layer: nn.LayerNorm) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + layer.eps)
    weight, bias = (value.detach().double().numpy() for value in (layer.weight, layer.bias))
    return np.asarray(normal * weight + bias)


def np_gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))))


@pytest.mark.parametrize("norm", ["layer_norm", "none"])
@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_laco_agrees_with_numpy(ratio: int, norm: MergerNorm) -> None:
    merger = random_merger("laco", ratio, norm=norm)
    x = windows(tokens(), ratio).double().numpy()  # [B, N', r * r, C]
    hidden = x.reshape(2, -1, ratio * ratio * WIDTH)
    if norm == "layer_norm":
        hidden = np_layer_norm(hidden, merger.norm)
    hidden = np_gelu(np_linear(hidden, merger.linear_1))
    close(merger(tokens()), np_linear(hidden, merger.linear_2) + x.mean(2))


@pytest.mark.parametrize("ratio", [2, 4])  # its scale is a float, which no 1/3 can be
def test_pixel_shuffle_agrees_with_internvl(ratio: int) -> None:
    merger = random_merger("pixel_shuffle", ratio)
    config = InternVLConfig(downsample_ratio=1 / ratio)
    config.vision_config.hidden_size = WIDTH
    config.text_config.hidden_size = WIDTH
    projector = InternVLMultiModalProjector(config)
    projector.layer_norm.load_state_dict(merger.norm.state_dict())
    projector.linear_1.load_state_dict(merger.linear_1.state_dict())
    projector.linear_2.load_state_dict(merger.linear_2.state_dict())
    # Its first spatial axis is called width, but holds rows: features are [B, rows, columns, C].
    shuffled = InternVLModel.pixel_shuffle(
        SimpleNamespace(), tokens().reshape(2, *GRID, WIDTH), scale_factor=1 / ratio
    )
    close(merger(tokens()), projector(shuffled.reshape(2, -1, ratio * ratio * WIDTH)))


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_pixel_shuffle_is_laco_without_the_shortcut(ratio: int) -> None:
    laco, shuffle = random_merger("laco", ratio), random_merger("pixel_shuffle", ratio)
    shuffle.load_state_dict(laco.state_dict())
    mean = windows(tokens(), ratio).mean(2)
    torch.testing.assert_close(laco(tokens()), shuffle(tokens()) + mean, rtol=0, atol=1e-6)
    alike = random_merger("laco", ratio, shortcut="none")
    alike.load_state_dict(laco.state_dict())
    assert torch.equal(alike(tokens()), shuffle(tokens()))


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_ldpv2_agrees_with_mlp_adaptive_pooling_and_convolution(ratio: int) -> None:
    merger = random_merger("ldpv2", ratio)
    features = merger.linear_2(F.gelu(merger.linear_1(tokens())))
    pooled = F.adaptive_avg_pool2d(image(features), (GRID[0] // ratio, GRID[1] // ratio))
    conv = merger.peg.conv
    positions = F.conv2d(pooled, conv.weight, conv.bias, padding=1, groups=WIDTH)
    close(merger(tokens()), flat(positions + pooled))


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_token_packer_agrees_with_interpolation_and_multihead_attention(ratio: int) -> None:
    merger = random_merger("token_packer", ratio)
    mine = merger.attention
    attention = nn.MultiheadAttention(WIDTH, 8, batch_first=True)
    layers = (mine.query, mine.key, mine.value)
    attention.in_proj_weight.data = torch.cat([layer.weight for layer in layers])
    attention.in_proj_bias.data = torch.cat([layer.bias for layer in layers])
    attention.out_proj.load_state_dict(mine.out.state_dict())

    size = (GRID[0] // ratio, GRID[1] // ratio)
    coarse = flat(F.interpolate(image(tokens()), size=size, mode="bilinear"))
    query = merger.query(coarse)  # [B, N', C]
    key = windows(merger.key(tokens()), ratio)  # [B, N', r * r, C]
    value = windows(merger.value(tokens()), ratio)
    mixed = [
        attention(query[:, one : one + 1], key[:, one], value[:, one])[0]
        for one in range(query.shape[1])
    ]
    hidden = F.gelu(merger.linear_1(torch.cat(mixed, dim=1)))
    close(merger(tokens()), merger.linear_2(hidden))


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_the_query_of_token_packer_is_bilinear_interpolation(ratio: int) -> None:
    size = (GRID[0] // ratio, GRID[1] // ratio)
    coarse = flat(F.interpolate(image(tokens()), size=size, mode="bilinear"))
    close(downscaled(windows(tokens(), ratio).flatten(2), ratio), coarse)


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_avg_pool_agrees_with_adaptive_average_pooling(ratio: int) -> None:
    merger = random_merger("avg_pool", ratio)
    size = (GRID[0] // ratio, GRID[1] // ratio)
    close(merger(tokens()), flat(F.adaptive_avg_pool2d(image(tokens()), size)))


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_patch_merger_agrees_with_qwen2_vl(ratio: int) -> None:
    merger = random_merger("patch_merger", ratio)
    reference = Qwen2VLPatchMerger(WIDTH, WIDTH, spatial_merge_size=ratio)
    reference.ln_q.load_state_dict(merger.norm.state_dict())
    reference.mlp[0].load_state_dict(merger.linear_1.state_dict())
    reference.mlp[2].load_state_dict(merger.linear_2.state_dict())
    # Its patches come window by window.
    expected = reference(windows(tokens(), ratio).reshape(-1, WIDTH)).reshape(2, -1, WIDTH)
    close(merger(tokens()), expected)


def conv_block(x: Tensor, block: RegBlock) -> Tensor:
    """A RegNet block as published: convolutions and channel-wise norms over [B, C, H, W]."""

    def norm(pixels: Tensor, layer: nn.LayerNorm) -> Tensor:
        mean = pixels.mean(1, keepdim=True)
        normal = (pixels - mean) / (pixels.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        return normal * layer.weight[:, None, None] + layer.bias[:, None, None]

    def conv1x1(pixels: Tensor, layer: nn.Linear) -> Tensor:
        return F.conv2d(pixels, layer.weight[:, :, None, None], layer.bias)

    hidden = F.silu(norm(conv1x1(x, block.linear_1), block.norm_1))
    hidden = F.conv2d(hidden, block.conv.conv.weight, padding=1, groups=WIDTH)
    hidden = F.silu(norm(hidden, block.norm_2))
    squeezed = F.silu(conv1x1(hidden.mean((2, 3), keepdim=True), block.gate.linear_1))
    hidden = hidden * torch.sigmoid(conv1x1(squeezed, block.gate.linear_2))
    return F.silu(norm(conv1x1(hidden, block.linear_2), block.norm_3) + x)


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_c_abstractor_agrees_with_convolutions_and_adaptive_pooling(ratio: int) -> None:
    merger = random_merger("c_abstractor", ratio)
    assert (len(merger.before), len(merger.after)) == (3, 3)
    x = image(tokens() + merger.positions.weight)
    for block in merger.before:
        x = conv_block(x, block)
    x = F.adaptive_avg_pool2d(x, (GRID[0] // ratio, GRID[1] // ratio))
    for block in merger.after:
        x = conv_block(x, block)
    close(merger(tokens()), merger.linear_2(F.silu(merger.linear_1(flat(x)))))


@pytest.mark.parametrize(
    ("kind", "eps"),
    [
        ("laco", {1e-5}),
        ("pixel_shuffle", {1e-5}),
        ("token_packer", {1e-6}),
        ("patch_merger", {1e-6}),
        ("c_abstractor", {1e-5}),
        ("ldpv2", set()),
        ("avg_pool", set()),
    ],
)
def test_norms_have_the_published_epsilon(kind: MergerKind, eps: set[float]) -> None:
    # Inputs of ordinary size would not show a difference.
    modules = random_merger(kind, 2).modules()
    assert {module.eps for module in modules if isinstance(module, nn.LayerNorm)} == eps
