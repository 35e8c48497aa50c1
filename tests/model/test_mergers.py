"""What all mergers share: windows and their order, the shortcut, odd grids, sizes, export."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from laco_deploy.model.config import LacoConfig
from laco_deploy.model.merger_spec import MergerKind, MergerShortcut, MergerSpec, OddGrid
from laco_deploy.model.mergers import (
    LacoMerger,
    Merger,
    build_merger,
    fit_grid,
    space_to_channel,
    window_mean,
)
from laco_deploy.model.mergers.init import (
    AttentionInLinear,
    OwnInit,
    PegConv2d,
    PositionEmbedding,
    TruncNormalLinear,
    ZeroInitLinear,
)
from laco_deploy.model.modeling import LacoPreTrainedModel
from laco_export.onnx_writer import ENCODER_OPS, write_graph
from laco_runtimes.errors import ConfigError
from laco_runtimes.graphs import GraphSpec, TensorSpec
from tests.bundles import random_config

GRID = (12, 24)
WIDTH = 5
KINDS: tuple[MergerKind, ...] = get_args(MergerKind)
WITH_SHORTCUT = [kind for kind in KINDS if kind != "avg_pool"]


def patches(grid: tuple[int, int] = GRID, batch: int = 2, width: int = WIDTH) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, grid[0] * grid[1], width, generator=generator)


def average_pool(
    tokens: Tensor, grid: tuple[int, int], ratio: int, ceil_mode: bool = False
) -> Tensor:
    """torch's own average pooling, on the image layout; what lies outside does not count."""
    batch, _, width = tokens.shape
    image = tokens.transpose(1, 2).reshape(batch, width, *grid)
    pooled = functional.avg_pool2d(image, ratio, ceil_mode=ceil_mode, count_include_pad=False)
    return pooled.flatten(2).transpose(1, 2)


def randomise(merger: nn.Module) -> None:
    """Leave no layer silent, nor saturated."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in merger.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))


def parameters(kind: MergerKind, width: int, grid: tuple[int, int], ratio: int = 2) -> int:
    with torch.device("meta"):
        merger = build_merger(MergerSpec(after_block=6, kind=kind, ratio=ratio), width, grid)
    return sum(weight.numel() for weight in merger.parameters())


# Windows and the order of channels


@pytest.mark.parametrize("ratio", [2, 3, 4])
def test_shortcut_equals_average_pooling(ratio: int) -> None:
    tokens = patches()
    shortcut = window_mean(space_to_channel(tokens, GRID, ratio), ratio)
    torch.testing.assert_close(shortcut, average_pool(tokens, GRID, ratio), rtol=0, atol=1e-6)


def test_shortcut_equals_halving_by_bilinear_interpolation() -> None:
    tokens = patches()
    image = tokens.transpose(1, 2).reshape(2, WIDTH, *GRID)
    half = functional.interpolate(image, scale_factor=0.5, mode="bilinear", align_corners=False)
    shortcut = window_mean(space_to_channel(tokens, GRID, 2), 2)
    torch.testing.assert_close(shortcut, half.flatten(2).transpose(1, 2), rtol=0, atol=1e-6)


def test_averaging_adjacent_channels_is_not_average_pooling() -> None:
    # DC-AE averages adjacent channels, which is right for its (c, i, j) order. On the (i, j, c)
    # order here it mixes r * r different channels of one patch.
    tokens = patches()
    stacked = space_to_channel(tokens, GRID, 2)
    wrong = stacked.reshape(2, -1, WIDTH, 4).mean(dim=3)
    right = average_pool(tokens, GRID, 2)
    assert wrong.shape == right.shape
    correlation = np.corrcoef(wrong.flatten().numpy(), right.flatten().numpy())[0, 1]
    assert abs(correlation) < 0.5


def test_averaging_contiguous_blocks_of_the_other_order_is_not_average_pooling() -> None:
    tokens = patches()
    image = tokens.transpose(1, 2).reshape(2, WIDTH, *GRID)
    unshuffled = functional.pixel_unshuffle(image, 2).flatten(2).transpose(1, 2)  # order (c, i, j)
    wrong, right = window_mean(unshuffled, 2), average_pool(tokens, GRID, 2)
    assert wrong.shape == right.shape
    correlation = np.corrcoef(wrong.flatten().numpy(), right.flatten().numpy())[0, 1]
    assert abs(correlation) < 0.5


def test_other_channel_order_with_its_own_grouping_gives_the_same_shortcut() -> None:
    tokens = patches()
    image = tokens.transpose(1, 2).reshape(2, WIDTH, *GRID)
    unshuffled = functional.pixel_unshuffle(image, 2).flatten(2).transpose(1, 2)  # order (c, i, j)
    adjacent = unshuffled.reshape(2, -1, WIDTH, 4).mean(dim=3)
    shortcut = window_mean(space_to_channel(tokens, GRID, 2), 2)
    torch.testing.assert_close(shortcut, adjacent, rtol=0, atol=1e-6)


def test_channels_are_stacked_row_then_column_then_channel() -> None:
    rows, columns = 4, 4
    tokens = torch.arange(rows * columns * 2).reshape(1, rows * columns, 2)
    stacked = space_to_channel(tokens, (rows, columns), 2).numpy()
    image = tokens.numpy().reshape(rows, columns, 2)
    for window, values in enumerate(stacked[0]):
        top, left = 2 * (window // 2), 2 * (window % 2)
        expected = [image[top + i, left + j, c] for i in (0, 1) for j in (0, 1) for c in (0, 1)]
        assert values.tolist() == expected


def test_space_to_channel_equals_the_six_dimensional_form() -> None:
    tokens, ratio = patches(), 3
    height, width = GRID
    plain = tokens.reshape(2, height // ratio, ratio, width // ratio, ratio, WIDTH)
    plain = plain.permute(0, 1, 3, 2, 4, 5).reshape(2, -1, ratio * ratio * WIDTH)
    assert torch.equal(space_to_channel(tokens, GRID, ratio), plain)


# Odd grids


@pytest.mark.parametrize("ratio", [2, 3, 4])
@pytest.mark.parametrize("grid", [(27, 27), (7, 9), (9, 8), (8, 9)])
def test_an_odd_grid_is_padded_with_its_last_row_and_column(
    grid: tuple[int, int], ratio: int
) -> None:
    tokens = patches(grid)
    image = tokens.numpy().reshape(2, *grid, WIDTH)
    edges = [(0, 0), (0, -grid[0] % ratio), (0, -grid[1] % ratio), (0, 0)]
    expected = np.pad(image, edges, mode="edge").reshape(2, -1, WIDTH)
    assert np.array_equal(fit_grid(tokens, grid, ratio, "replicate").numpy(), expected)


@pytest.mark.parametrize("ratio", [2, 3, 4])
@pytest.mark.parametrize("grid", [(27, 27), (7, 9), (9, 8), (8, 9)])
def test_an_odd_grid_can_be_cropped(grid: tuple[int, int], ratio: int) -> None:
    tokens = patches(grid)
    image = tokens.numpy().reshape(2, *grid, WIDTH)
    rows, columns = (side - side % ratio for side in grid)
    expected = image[:, :rows, :columns].reshape(2, -1, WIDTH)
    assert np.array_equal(fit_grid(tokens, grid, ratio, "crop").numpy(), expected)


@pytest.mark.parametrize("odd_grid", get_args(OddGrid))
def test_a_grid_that_divides_is_left_as_it_is(odd_grid: OddGrid) -> None:
    tokens = patches()
    assert fit_grid(tokens, GRID, 3, odd_grid) is tokens


def test_shortcut_of_27_by_27_is_the_mean_of_the_real_patches() -> None:
    tokens = patches((27, 27))
    pooled = build_merger(MergerSpec(after_block=1, kind="avg_pool"), WIDTH, (27, 27))(tokens)
    assert pooled.shape == (2, 196, WIDTH)
    expected = average_pool(tokens, (27, 27), 2, ceil_mode=True)
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-6)


def test_zeros_around_27_by_27_would_halve_the_edge_and_quarter_the_corner() -> None:
    # What other models do; the reason for replicating.
    image = torch.ones(1, WIDTH, 27, 27)
    pooled = functional.avg_pool2d(functional.pad(image, (0, 1, 0, 1)), 2)
    assert (pooled[0, 0, 0, -1], pooled[0, 0, -1, -1]) == (0.5, 0.25)
    ours = fit_grid(torch.ones(1, 729, WIDTH), (27, 27), 2, "replicate")
    assert torch.equal(
        window_mean(space_to_channel(ours, (28, 28), 2), 2), torch.ones(1, 196, WIDTH)
    )


@pytest.mark.parametrize("odd_grid", get_args(OddGrid))
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_sees_an_odd_grid_as_the_fitted_one(kind: MergerKind, odd_grid: OddGrid) -> None:
    grid, fitted = (7, 9), (8, 10) if odd_grid == "replicate" else (6, 8)
    spec = MergerSpec(after_block=1, kind=kind, odd_grid=odd_grid)
    odd, even = build_merger(spec, 8, grid), build_merger(spec, 8, fitted)
    randomise(odd)
    even.load_state_dict(odd.state_dict())
    tokens = patches(grid, width=8)
    image = tokens.numpy().reshape(2, *grid, 8)
    image = np.pad(image, [(0, 0), (0, 1), (0, 1), (0, 0)], mode="edge")[
        :, : fitted[0], : fitted[1]
    ]
    expected = even(torch.from_numpy(image.reshape(2, -1, 8)))
    torch.testing.assert_close(odd(tokens), expected, rtol=0, atol=1e-6)


# The shortcut, for any kind


@pytest.mark.parametrize("grid", [(8, 8), (7, 9)])
@pytest.mark.parametrize("kind", WITH_SHORTCUT)
def test_a_fresh_merger_with_the_shortcut_is_average_pooling(
    kind: MergerKind, grid: tuple[int, int]
) -> None:
    merger = build_merger(MergerSpec(after_block=1, kind=kind, shortcut="window_mean"), 8, grid)
    tokens = patches(grid, width=8)
    expected = average_pool(tokens, grid, 2, ceil_mode=True)
    torch.testing.assert_close(merger(tokens), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", WITH_SHORTCUT)
def test_the_shortcut_adds_the_window_mean_and_nothing_else(kind: MergerKind) -> None:
    on = build_merger(MergerSpec(after_block=1, kind=kind, shortcut="window_mean"), WIDTH, GRID)
    off = build_merger(MergerSpec(after_block=1, kind=kind, shortcut="none"), WIDTH, GRID)
    randomise(on)
    off.load_state_dict(on.state_dict())
    found = on(patches()) - off(patches())
    torch.testing.assert_close(found, average_pool(patches(), GRID, 2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", WITH_SHORTCUT)
def test_without_the_shortcut_no_layer_starts_at_zero(kind: MergerKind) -> None:
    merger = build_merger(MergerSpec(after_block=1, kind=kind, shortcut="none"), WIDTH, GRID)
    assert not any(isinstance(module, ZeroInitLinear) for module in merger.modules())
    assert merger(patches()).std() > 0


def test_norm_none_leaves_the_branch_unnormalised() -> None:
    merger = LacoMerger(MergerSpec(after_block=1, norm="none"), WIDTH, GRID)
    assert not any(isinstance(module, torch.nn.LayerNorm) for module in merger.modules())


def test_laco_keeps_the_names_its_weights_were_saved_under() -> None:
    names = build_merger(MergerSpec(after_block=1), WIDTH, GRID).state_dict()
    parts = ("norm", "linear_1", "linear_2")
    assert list(names) == [f"{part}.{kind}" for part in parts for kind in ("weight", "bias")]


# Sizes


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("laco", 5_244_928 + 8_192),
        ("pixel_shuffle", 5_253_120),
        ("ldpv2", 2_109_440),
        ("token_packer", 11_550_720),
        ("avg_pool", 0),
        ("patch_merger", 20_978_688),
        # Six blocks, the readout, and one position for each of 1,024 patches.
        ("c_abstractor", 6 * 2_638_080 + 2_099_200 + 1_048_576),
    ],
)
def test_parameter_count_at_published_width(kind: MergerKind, count: int) -> None:
    assert parameters(kind, 1024, (32, 32)) == count


def test_parameter_count_at_siglip_width() -> None:
    assert parameters("laco", 1152, (27, 27)) == 6_637_824 + 9_216


@pytest.mark.parametrize("ratio", [2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_one_token_of_the_same_width_per_window(
    kind: MergerKind, ratio: int
) -> None:
    merger = build_merger(MergerSpec(after_block=1, kind=kind, ratio=ratio), WIDTH, GRID)
    merged = merger(patches())
    assert merged.shape == (2, GRID[0] // ratio * (GRID[1] // ratio), WIDTH)
    assert merger.merged_grid == (GRID[0] // ratio, GRID[1] // ratio)


def test_a_grid_of_which_nothing_is_left_is_an_error() -> None:
    spec = MergerSpec(after_block=1, ratio=4, odd_grid="crop")
    with pytest.raises(ConfigError, match="3x3 patch grid is too small for 4x4 windows"):
        build_merger(spec, WIDTH, (3, 3))


# Training


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_reaches_every_weight_and_every_patch(kind: MergerKind) -> None:
    merger = build_merger(MergerSpec(after_block=1, kind=kind), 8, GRID)
    randomise(merger)
    tokens = patches(width=8).requires_grad_()
    generator = torch.Generator().manual_seed(2)
    target = torch.randn(merger(tokens).shape, generator=generator)
    (merger(tokens) * target).sum().backward()
    for name, weight in merger.named_parameters():
        # What is added to all keys shifts every score of a query alike: softmax takes it out.
        if name not in ("key.3.bias", "attention.key.bias"):
            assert weight.grad is not None, name
            assert weight.grad.abs().sum() > 1e-4, name
    assert tokens.grad is not None
    assert bool((tokens.grad.abs().sum(-1) > 0).all())


@pytest.mark.parametrize("kind", WITH_SHORTCUT)
def test_a_branch_that_starts_at_zero_moves_with_the_first_step(kind: MergerKind) -> None:
    merger = build_merger(MergerSpec(after_block=1, kind=kind, shortcut="window_mean"), 8, GRID)
    merger(patches(width=8)).square().sum().backward()
    grad = merger.get_parameter("linear_2.weight").grad
    assert grad is not None
    assert grad.abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_runs_in_bfloat16(kind: MergerKind) -> None:
    merger = build_merger(MergerSpec(after_block=1, kind=kind), 8, (7, 9)).eval()
    randomise(merger)
    tokens = patches((7, 9), width=8)
    with torch.no_grad():
        exact = merger(tokens)
        found = merger.bfloat16()(tokens.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found.float() - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_back_bit_for_bit(kind: MergerKind) -> None:
    spec = MergerSpec(after_block=1, kind=kind)
    old, new = build_merger(spec, WIDTH, GRID), build_merger(spec, WIDTH, GRID)
    randomise(old)
    new.load_state_dict(old.state_dict())
    assert torch.equal(old(patches()), new(patches()))


def test_layers_with_a_start_of_their_own_start_there() -> None:
    torch.manual_seed(0)
    deviation = {
        TruncNormalLinear: (TruncNormalLinear(256, 256).weight, 0.02),
        # Xavier over the packed [3C, C] matrix: a bound of sqrt(6 / 4C).
        AttentionInLinear: (AttentionInLinear(256, 256).weight, (2 / (4 * 256)) ** 0.5),
        PegConv2d: (PegConv2d(4096, 4096, 3, groups=4096).weight, (1 / 27) ** 0.5),
        PositionEmbedding: (PositionEmbedding(256, 256).weight, 0.02),
        ZeroInitLinear: (ZeroInitLinear(256, 256).weight, 0.0),
    }
    assert set(deviation) == set(OwnInit.__subclasses__())
    for weight, expected in deviation.values():
        assert float(weight.detach().std()) == pytest.approx(expected, rel=0.03)


def test_attention_starts_as_multihead_attention_does() -> None:
    torch.manual_seed(0)
    packed = nn.MultiheadAttention(256, 8).in_proj_weight.detach()
    mine = AttentionInLinear(256, 256).weight.detach()
    assert float(mine.abs().max()) == pytest.approx(float(packed.abs().max()), rel=0.01)
    assert float(mine.std()) == pytest.approx(float(packed.std()), rel=0.02)


class Holder(LacoPreTrainedModel):
    """A model that transformers initialises, with every kind in it."""

    def __init__(self, config: LacoConfig) -> None:
        super().__init__(config)
        self.mergers = nn.ModuleDict(
            {
                f"{kind}_{shortcut}": build_merger(
                    MergerSpec(after_block=1, kind=kind, shortcut=shortcut), 64, (16, 16)
                )
                for kind in WITH_SHORTCUT
                for shortcut in get_args(MergerShortcut)
            }
        )
        self.post_init()


def test_transformers_leaves_the_starts_of_their_own_alone() -> None:
    torch.manual_seed(0)
    config = random_config()
    config.text.initializer_range = 0.5  # as no layer with a start of its own has it
    model = Holder(config)
    found = {type(module) for module in model.modules() if isinstance(module, OwnInit)}
    assert found == set(OwnInit.__subclasses__())
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, OwnInit):
            assert float(weight.detach().std()) < 0.25, name
        elif isinstance(module, nn.Linear | nn.Conv2d):
            assert float(weight.detach().std()) == pytest.approx(0.5, rel=0.1), name
        bias = getattr(module, "bias", None)
        assert bias is None or not bias.any(), name
    tokens = patches((16, 16), width=64)
    for kind in WITH_SHORTCUT:
        merged = model.mergers[f"{kind}_window_mean"](tokens)
        torch.testing.assert_close(merged, average_pool(tokens, (16, 16), 2), rtol=0, atol=1e-6)


def test_weights_that_are_loaded_are_not_started_anew(tmp_path: Path) -> None:
    model = Holder(random_config())
    randomise(model)
    model.save_pretrained(tmp_path)
    again = Holder.from_pretrained(tmp_path).state_dict()
    for name, old in model.state_dict().items():
        assert torch.equal(old, again[name]), name


# Export


class AllKinds(nn.Module):
    """Every kind on the same tokens, one output each."""

    def __init__(self, ratio: int, odd_grid: OddGrid, grid: tuple[int, int]) -> None:
        super().__init__()
        self.kinds = nn.ModuleList(
            build_merger(
                MergerSpec(after_block=1, kind=kind, ratio=ratio, odd_grid=odd_grid), 8, grid
            )
            for kind in KINDS
        )

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        return tuple(merger(tokens) for merger in self.kinds)


@pytest.mark.parametrize(
    ("ratio", "odd_grid", "grid", "extra_ops"),
    [
        (2, "replicate", (8, 8), set()),
        (2, "replicate", (7, 9), {"Slice", "Concat"}),
        pytest.param(3, "crop", (7, 10), {"Slice"}, marks=pytest.mark.full),
        pytest.param(4, "replicate", (8, 10), {"Slice", "Concat"}, marks=pytest.mark.full),
    ],
)
def test_every_kind_exports_with_static_shapes(
    ratio: int, odd_grid: OddGrid, grid: tuple[int, int], extra_ops: set[str], tmp_path: Path
) -> None:
    module = AllKinds(ratio, odd_grid, grid).eval()
    for merger in module.kinds:
        randomise(merger)
    example: Merger = module.kinds[0]  # type: ignore[assignment]
    count = example.merged_grid[0] * example.merged_grid[1]
    spec = GraphSpec(
        "mergers",
        (TensorSpec("tokens", "float32", ("tiles", grid[0] * grid[1], 8)),),
        tuple(TensorSpec(kind, "float32", ("tiles", count, 8)) for kind in KINDS),
    )
    allowed = ENCODER_OPS | extra_ops
    path = write_graph(module, spec, tmp_path, allowed_ops=frozenset(allowed))

    graph = onnx.load(path).graph
    assert graph.value_info
    for value in (*graph.value_info, *graph.output):
        assert len(value.type.tensor_type.shape.dim) <= 4, value.name
    constants = {one.name for one in graph.initializer}
    for node in graph.node:
        if node.op_type in ("Reshape", "Slice"):  # where to cut and what to make of it
            assert set(node.input[1:]) <= constants, node.name

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for tiles in (1, 3):
        tokens = patches(grid, tiles, width=8)
        with torch.no_grad():
            expected = module(tokens)
        found = session.run(None, {"tokens": tokens.numpy()})
        for kind, one, other in zip(KINDS, found, expected, strict=True):
            np.testing.assert_allclose(one, other.numpy(), rtol=0, atol=1e-5, err_msg=kind)
