"""Stages of a training: settings in YAML, checked, with the command line over file over default."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from laco_deploy.training.parts import Part
from laco_runtimes.errors import ConfigError

STAGE_NAMES = ("stage1", "stage1.5", "stage2-si", "stage2-ov")
"""The paper's four stages (section 4.1), in order. Their files are in `stages/`."""

Count = Annotated[int, Field(ge=1)]
Every = Annotated[int, Field(ge=0)]
"""A number of steps; 0 is never."""


def _number(value: Any) -> Any:
    """YAML 1.1 reads `1e-5`, without a dot, as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Number = Annotated[float, BeforeValidator(_number)]
Rate = Annotated[Number, Field(gt=0, allow_inf_nan=False)]


class Stage(BaseModel):
    """Settings of one stage. A file states those that differ from the defaults below."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[\w.-]+$")
    learning_rates: dict[Part, Rate] = Field(min_length=1)
    """Peak rate per part. A part that is not named is frozen."""
    style: Literal["plain", "chat"] = "chat"
    """`plain`: image and caption (LLaVA's stage 1). `chat`: ChatML."""
    clean_mask: bool = False
    """Supervise only answers and the token behind each; LLaVA also supervises newlines and role
    marks of questions."""
    image_mode: Literal["square", "anyres"] = "square"
    image_newline: bool | None = None
    """Give the model the learned vector that ends rows, where it has none, or take it away (False);
    None leaves it be."""
    max_length: Count = 32768
    """Tokens of a sample, after images have become tokens."""
    max_frames: Count = 32
    fps: Rate = 1.0

    epochs: Rate = 1.0
    max_steps: Count | None = None
    """Stop, with the schedule shrunk to it, after so many optimizer steps in place of `epochs`."""
    global_batch: Count = 512
    """Samples of an optimizer step over all processes."""
    micro_batch: Count = 1
    """Samples a process holds at once; the rest of the global batch is accumulated."""
    schedule: Literal["cosine", "constant"] = "cosine"
    min_learning_rate: Annotated[Number, Field(ge=0)] = 1e-7
    """Floor of the cosine for `base_learning_rate`; every part ends at the same share of its own
    peak, as transformers' `cosine_with_min_lr` has it."""
    warmup_ratio: Annotated[Number, Field(ge=0, lt=1)] = 0.03
    weight_decay: Annotated[Number, Field(ge=0)] = 0.0
    adam_betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: Rate = 1.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the arithmetic; weights and optimizer stay float32. `auto`: bf16 where the device has
    instructions for it."""
    gradient_checkpointing: bool = True
    fsdp: bool = False
    """Shard weights, gradients and optimizer over the processes (FSDP2) in place of DDP."""
    length_grouping: bool = True
    seed: int = 0
    workers: int = Field(default_factory=lambda: min(4, os.cpu_count() or 1), ge=0)
    """Processes that decode images, per training process; by default at most one a core."""

    max_broken: Annotated[int | float, BeforeValidator(_number), Field(ge=0)] = 0.01
    """Broken samples to skip before the run stops: a count, or below 1 a share of the data."""
    save_every: Count = 200
    keep_snapshots: Count = 2
    log_every: Count = 1
    evaluate_every: Every = 0
    sample_every: Every = 0
    sample_count: Count = 4
    evaluate_limit: Count | None = None
    """Ask only so many questions of the held-out data."""
    max_new_tokens: Count = 64

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.min_learning_rate > self.base_learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate:g} is above the learning rate "
                f"{self.base_learning_rate:g}"
            )
        if self.global_batch % self.micro_batch:
            raise ValueError(
                f"global_batch {self.global_batch} is no multiple of micro_batch {self.micro_batch}"
            )
        return self

    @property
    def base_learning_rate(self) -> float:
        """What LLaVA calls the learning rate: the projector's, else the largest."""
        return self.learning_rates.get("projector", max(self.learning_rates.values()))

    @property
    def min_rate(self) -> float:
        """Share of its peak rate at which every part ends."""
        return self.min_learning_rate / self.base_learning_rate

    def allowed_broken(self, samples: int) -> int:
        """Broken samples that are skipped before a run on so many samples stops."""
        if self.max_broken < 1:
            return int(self.max_broken * samples)
        return int(self.max_broken)

    def accumulation(self, processes: int) -> int:
        """Micro batches of an optimizer step in each of so many processes.

        Raises:
            ConfigError: the global batch cannot be split so.
        """
        together = self.micro_batch * processes
        if self.global_batch % together:
            raise ConfigError(
                f"global_batch {self.global_batch} is no multiple of {processes} processes x "
                f"micro_batch {self.micro_batch}. Change the micro batch or the processes."
            )
        return self.global_batch // together

    def to_yaml(self) -> str:
        """Every setting in force; `load_stage` reads it again."""
        text: str = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
        return text


def load_stage(source: str | Path, overrides: Mapping[str, Any] | None = None) -> Stage:
    """Read a stage.

    Args:
        source: one of `STAGE_NAMES`, or a YAML file.
        overrides: over what the file says, which is over the defaults of `Stage`. Dots reach
            inside: `{"learning_rates.merger": 1e-4}`. None for a part's rate freezes that part.

    Raises:
        ConfigError: no such stage, not YAML, an unknown setting or a value out of range.
    """
    values, origin = _read(source), f"stage '{source}'"
    for name, value in (overrides or {}).items():
        _put(values, name.split("."), value)
    try:
        return Stage(**values)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_first(error)}") from error


def parse_settings(words: Iterable[str]) -> dict[str, Any]:
    """`--set` of the command line: `name=value`, the value as YAML.

    Raises:
        ConfigError: no `=`, or a value that is not YAML.
    """
    settings = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"--set {word} has no value. Write it as --set name=value.")
        try:
            settings[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {word} is not YAML. Quote the value.") from error
    return settings


def _read(source: str | Path) -> dict[str, Any]:
    if source in STAGE_NAMES:
        text = (files("laco_deploy.training") / "stages" / f"{source}.yaml").read_text("utf-8")
    elif Path(source).is_file():
        text = Path(source).read_text(encoding="utf-8")
    else:
        near = difflib.get_close_matches(str(source), STAGE_NAMES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"'{source}' is neither a stage ({', '.join(STAGE_NAMES)}) nor a file.{hint} "
            "Name one of them."
        )
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"'{source}' is not YAML. Mend it at: {_where(error)}.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"'{source}' holds no settings. Write them as 'name: value'.")
    return values


def _where(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}" if mark is not None else "an unknown place"


def _put(values: dict[str, Any], path: list[str], value: Any) -> None:
    *parents, last = path
    for parent in parents:
        inside = values.setdefault(parent, {})
        if not isinstance(inside, dict):
            raise ConfigError(f"'{'.'.join(path)}' reaches inside a value. Set '{parent}' whole.")
        values = inside
    if value is None and parents:
        values.pop(last, None)
    else:
        values[last] = value


def _first(error: ValidationError) -> str:
    """The first of pydantic's complaints, as one sentence and what to do."""
    found = error.errors()[0]
    place = ".".join(str(part) for part in found["loc"] if part != "[key]")
    if found["type"] == "extra_forbidden":
        near = difflib.get_close_matches(place, Stage.model_fields, n=1)
        hint = f"Did you mean '{near[0]}'?" if near else "Take it out."
        return f"unknown setting '{place}'. {hint}"
    if not place:
        return f"{found['msg'].removeprefix('Value error, ')}. Change one of them."
    return f"'{place}' is {found['input']!r}: {found['msg']}. Change it."


__all__ = ["STAGE_NAMES", "Stage", "load_stage", "parse_settings"]
