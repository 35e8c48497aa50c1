"""Whether a run can go on with the snapshot of another."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from laco_runtimes.errors import CheckpointError


def environment(device: torch.device) -> dict[str, Any]:
    """What changes the last bits of a sum."""
    return {
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "device": device.type,
        "threads": torch.get_num_threads(),
    }


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`name was this and is that` for each entry that is not the same."""
    return [
        f"{name} was {was.get(name)!r} and is {now.get(name)!r}"
        for name in sorted({*was, *now})
        if was.get(name) != now.get(name)
    ]


def check_settings(
    path: Path, was: Mapping[str, Any], now: Mapping[str, Any], may_differ: Collection[str]
) -> None:
    """Refuse a snapshot of a run with other settings.

    Args:
        path: of the snapshot.
        was: settings of the run that wrote it.
        now: settings of the run that would go on.
        may_differ: names that are not compared.

    Raises:
        CheckpointError: they differ in another name.
    """
    compared = [{name: s[name] for name in s if name not in may_differ} for s in (was, now)]
    if changed := differences(*compared):
        raise CheckpointError(
            f"'{path}' is of another run: {'; '.join(changed)}. "
            "Resume with the same settings, or train into another folder."
        )


__all__ = ["check_settings", "differences", "environment"]
