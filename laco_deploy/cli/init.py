"""`laco init`."""

from __future__ import annotations

from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from cyclopts import Parameter
from rich.table import Table

from laco_deploy.terminal import say, show
from laco_runtimes.errors import ArgumentError, ConfigError, MissingPackageError

if TYPE_CHECKING:
    from laco_deploy.model.config import LacoConfig
    from laco_deploy.model.merger_spec import MergerSpec

NO_MERGER = "none"

Item = TypeVar("Item")
Several = Annotated[tuple[Item, ...], Parameter(consume_multiple=True)]
"""`--ratio 2 2`, or the option repeated."""


def init(
    *,
    vision: str,
    llm: str,
    out: Path,
    merger: Several[str] = ("laco",),
    after_block: Several[str] = (),
    ratio: Several[int] = (2,),
    shortcut: Several[str] = (),
    norm: Several[str] = (),
    odd_grid: Literal["replicate", "crop", "none"] = "replicate",
    blocks: int | None = None,
    random_weights: Annotated[bool, Parameter(negative="")] = False,
    tokenizer: Path | None = None,
    image_mode: Literal["square", "anyres"] = "square",
    image_newline: bool | None = None,
    video_pool_stride: int = 1,
    seed: int = 0,
    download: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Compose a checkpoint from a vision encoder, a language model and mergers.

    Examples:

    * `laco init --vision aimv2-large-448/ --llm Qwen2.5-0.5B-Instruct/ --after-block 6 --out ckpt/`
    * `laco init --vision aimv2-large-448 --llm qwen2.5-0.5b --random-weights --out ckpt/`
    * `laco init ... --merger laco --after-block 6 12 --out ckpt/`

    Mergers and projector start untrained; train them before use. `--random-weights` needs no file
    at all and shows how fast a model would be.

    Presets: aimv2-large-224, aimv2-large-336, aimv2-large-448, aimv2-huge-448, aimv2-1b-448,
    siglip-so400m-384, internvit-300m-448; qwen2.5-0.5b.

    Parameters
    ----------
    vision
        Folder of a published encoder (AIMv2, SigLIP, InternViT), hub id, or preset.
    llm
        Folder of a published Qwen2 or Qwen2.5, hub id, or preset.
    out
        Checkpoint folder to write. An older checkpoint there is replaced.
    merger
        laco, pixel_shuffle, ldpv2, token_packer, avg_pool, patch_merger or c_abstractor; `none`
        for an uncompressed model. One for all, or one per merger.
    after_block
        Block that the merger stands behind, counted from 1; several numbers for several mergers.
        Default: a quarter of the blocks.
    ratio
        2, 3 or 4: so many patches squared become one token. One for all, or one per merger.
    shortcut
        `window_mean` or `none`. Default: the merger's own. One for all, or one per merger.
    norm
        `layer_norm` or `none`, for laco and pixel_shuffle. One for all, or one per merger.
    odd_grid
        Where the ratio does not divide the grid: repeat the last row and column, cut off what is
        left over, or refuse (`none`).
    blocks
        Keep only so many blocks of the encoder.
    random_weights
        Take the settings of both models and draw all weights: for speed only.
    tokenizer
        Folder with the `tokenizer.json`, where it is not in that of the language model.
    image_mode
        `square`: an image is one tile. `anyres`: one tile of the whole and a grid of its parts.
    image_newline
        Whether a learned vector ends each row of tokens. Default: in `anyres`.
    video_pool_stride
        Pool the tokens of a video frame by this factor.
    seed
        Of the weights that are drawn.
    download
        Fetch hub ids that are not in the local Hugging Face cache.
    """
    for package in ("torch", "transformers"):
        if find_spec(package) is None:
            raise MissingPackageError(package, "train")

    from laco_deploy.model.checkpoint import check_replaceable
    from laco_deploy.model.compose import plan
    from laco_deploy.model.facts import model_facts
    from laco_deploy.model.parts import find_language_model, find_vision

    check_replaceable(out)
    tower = find_vision(vision, blocks=blocks, download=download)
    language_model = find_language_model(llm, download=download)
    _keep_sources(out, tower.folder, language_model.folder, tokenizer)
    specs = read_mergers(
        merger, after_block, ratio, shortcut, norm, odd_grid=odd_grid, blocks=tower.blocks
    )
    planned = plan(
        tower,
        language_model,
        specs,
        random_weights=random_weights,
        tokenizer=tokenizer,
        image_mode=image_mode,
        image_newline=image_mode == "anyres" if image_newline is None else image_newline,
        video_pool_stride=video_pool_stride,
    )
    notes = odd_grids(planned.config, refuse=odd_grid == "none")
    planned.build(seed=seed).save(out)

    table = Table(show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in model_facts(planned.config).rows():
        table.add_row(name, text)
    show(table)
    for note in notes:
        say(note)
    what = "Random weights: for speed only." if random_weights else "Mergers are untrained."
    say(f"{what} The checkpoint is in {out}")


def read_mergers(
    kinds: tuple[str, ...],
    after_blocks: tuple[str, ...],
    ratios: tuple[int, ...],
    shortcuts: tuple[str, ...],
    norms: tuple[str, ...],
    *,
    odd_grid: str,
    blocks: int,
) -> list[MergerSpec]:
    """Mergers from options of which each is given once for all, or once per merger.

    Args:
        kinds: names of mergers; `none` alone is no merger.
        after_blocks: numbers of blocks; without any, one merger after a quarter of the blocks.
        ratios: r.
        shortcuts: empty for the merger's own.
        norms: empty for the merger's own.
        odd_grid: "replicate", "crop" or "none".
        blocks: how many the encoder has.

    Raises:
        ArgumentError: options of different number, or `none` with settings of a merger.
        ConfigError: an unknown name, or a number out of range.
    """
    from laco_deploy.model.merger_spec import MergerSpec

    if kinds == (NO_MERGER,):
        if after_blocks or shortcuts or norms:
            raise ArgumentError(
                "--merger none is no merger, but settings of one are given. Leave them out."
            )
        return []
    numbers = [block_number(text, blocks) for text in after_blocks] or [max(blocks // 4, 1)]
    count = max(len(kinds), len(numbers))
    options = {
        "merger": kinds,
        "after-block": numbers,
        "ratio": ratios,
        "shortcut": shortcuts or (None,),
        "norm": norms or (None,),
    }
    for name, values in options.items():
        if len(values) not in (1, count) or (name == "after-block" and len(values) != count):
            raise ArgumentError(
                f"--{name} is given {len(values)} times for {count} mergers. "
                + ("Give it for each." if name == "after-block" else "Give it once, or for each.")
            )
    each = (list(values) * count if len(values) == 1 else values for values in options.values())
    return [
        MergerSpec.from_dict(
            {
                "kind": kind,
                "after_block": number,
                "ratio": ratio,
                "shortcut": shortcut,
                "norm": norm,
                "odd_grid": "replicate" if odd_grid == "none" else odd_grid,
            }
        )
        for kind, number, ratio, shortcut, norm in zip(*each, strict=True)
    ]


def _keep_sources(out: Path, *sources: Path | None) -> None:
    """Refuse to replace what the model is made from.

    Raises:
        ArgumentError: `out` is a source, or holds one.
    """
    for source in sources:
        if source is not None and source.resolve().is_relative_to(out.resolve()):
            raise ArgumentError(
                f"--out '{out}' is or holds '{source}', which the model is made from. "
                "Choose another folder."
            )


def block_number(text: str, blocks: int) -> int:
    """The k that a user typed. A fraction of the blocks is refused, as it names no block.

    Raises:
        ConfigError: not a whole number; for a fraction the message says which k it comes to.
    """
    try:
        return int(text)
    except ValueError:
        pass
    try:
        place = Fraction(text) * blocks
    except (ValueError, ZeroDivisionError):
        raise ConfigError(
            f"--after-block {text!r} is no number. Give that of a block, 1 to {blocks}."
        ) from None
    if not 0 < place <= blocks:
        raise ConfigError(
            f"--after-block {text} names no block. Give the number of one, 1 to {blocks}."
        )
    below, above = max(int(place), 1), max(-int(-place // 1), 1)
    which = f"block {below}" if below == above else f"between blocks {below} and {above}"
    raise ConfigError(
        f"--after-block {text} is a fraction: of {blocks} blocks it comes to {which}. "
        f"Give the number: --after-block {below}."
    )


def odd_grids(config: LacoConfig, *, refuse: bool) -> list[str]:
    """A line for each merger whose ratio does not divide the grid it meets.

    Raises:
        ConfigError: there is one, and `refuse`.
    """
    notes, grid = [], config.patch_grid
    for spec in config.merger_specs:
        (height, width), r = grid, spec.ratio
        grid = spec.merged_grid(grid)
        if height % r == 0 and width % r == 0:
            continue
        problem = f"after block {spec.after_block} the grid is {height}x{width}, no multiple of {r}"
        if refuse:
            raise ConfigError(
                f"{problem}, and --odd-grid is none. Choose replicate, crop or another ratio."
            )
        done = "cropped" if spec.odd_grid == "crop" else "padded with its last row and column"
        notes.append(f"{problem}: it is {done} to {grid[0] * r}x{grid[1] * r}.")
    return notes


__all__ = ["block_number", "init", "odd_grids", "read_mergers"]
