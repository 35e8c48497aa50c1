"""The random number generators of a process as tensors and JSON."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed


def rng_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State of the generators of python, numpy, torch and the GPUs this process uses."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    tensors = {
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "torch": torch.get_rng_state(),
    }
    for index, device in enumerate(_gpus()):
        tensors[f"cuda.{index}"] = torch.cuda.get_rng_state(device)
    rest = {
        "python": {"version": version, "gauss": gauss},
        "numpy": {"kind": kind, "position": position, "has_gauss": has_gauss, "gauss": cached},
    }
    return tensors, rest


def restore_rng(tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> None:
    """Put back what `rng_state` returned."""
    python, numpy = rest["python"], rest["numpy"]
    random.setstate((python["version"], tuple(tensors["python"].tolist()), python["gauss"]))
    np.random.set_state(
        (
            numpy["kind"],
            tensors["numpy"].numpy().astype(np.uint32),
            numpy["position"],
            numpy["has_gauss"],
            numpy["gauss"],
        )
    )
    torch.set_rng_state(tensors["torch"])
    for index, device in enumerate(_gpus()):
        if (state := tensors.get(f"cuda.{index}")) is not None:
            torch.cuda.set_rng_state(state, device)


def _gpus() -> list[int]:
    """The GPUs this process draws on; asking one costs memory there, so not those of others."""
    if not torch.cuda.is_available():
        return []
    if distributed.is_initialized():
        return [torch.cuda.current_device()]
    return list(range(torch.cuda.device_count()))


__all__ = ["restore_rng", "rng_state"]
