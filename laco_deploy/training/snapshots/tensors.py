"""Weights and optimizer state by parameter name, whole, whether the model is sharded or not.

`torch.distributed.checkpoint.state_dict` does much the same, but takes a step with zero gradients
to fill an empty optimizer. A parameter that had no gradient yet (the newline embedding before the
first tiled image) would come back with a step count of one and not go on to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from laco_runtimes.errors import CheckpointError

_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")
_NAMES_SHOWN = 3


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name, each once: a tied weight has its first name."""
    persistent = {_plain(name) for name in model.state_dict()}
    named: Iterable[tuple[str, Tensor]] = [*model.named_parameters(), *model.named_buffers()]
    return {_plain(name): value for name, value in named if _plain(name) in persistent}


def gather(tensors: Mapping[str, Tensor], *, here: bool) -> dict[str, Tensor]:
    """The tensors whole and on the CPU. With FSDP2 every process must call this.

    Args:
        tensors: in the same order on every process.
        here: whether this process wants them; the others get an empty dictionary.
    """
    gathered = {}
    for name, tensor in tensors.items():
        value = tensor.detach()
        if isinstance(value, DTensor):
            value = value.full_tensor()
        if here:
            gathered[name] = value.cpu().contiguous()
    return gathered


@torch.no_grad()
def load_model(model: nn.Module, stored: Mapping[str, Tensor]) -> None:
    """Copy weights that `gather` made whole into `model`, sharded or not.

    Raises:
        CheckpointError: other names, shapes or types.
    """
    own = model_tensors(model)
    wrong = sorted(set(own) ^ set(stored)) or [
        name
        for name, tensor in own.items()
        if tensor.shape != stored[name].shape or tensor.dtype != stored[name].dtype
    ]
    if wrong:
        raise CheckpointError(
            f"the snapshot is of another model: {_some(wrong)} differ in name, shape or type. "
            "Resume with the model and the precision the run was started with."
        )
    for name, tensor in own.items():
        tensor.copy_(_sharded_like(stored[name], tensor))


def optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of an optimizer as tensors named `parameter/key` and the rest as JSON.

    Returns:
        Tensors (sharded as they are: see `gather`), and `{"groups", "values"}`: the settings of
        each group with the names of its parameters, and state that is no tensor.

    Raises:
        CheckpointError: the optimizer holds a parameter that is not the model's.
    """
    names = _names(model)
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    groups = []
    for group in optimizer.param_groups:
        members = [_name(names, parameter) for parameter in group["params"]]
        groups.append({**group, "params": members})
        for name, parameter in zip(members, group["params"], strict=True):
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"{name}/{key}"] = value
                else:
                    values.setdefault(name, {})[key] = value
    return tensors, {"groups": groups, "values": values}


def load_optimizer(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    rest: Mapping[str, Any],
) -> None:
    """Put back what `optimizer_state` and `gather` gave.

    Raises:
        CheckpointError: the groups hold other parameters.
    """
    names = _names(model)
    own = [[_name(names, p) for p in group["params"]] for group in optimizer.param_groups]
    if own != [group["params"] for group in rest["groups"]]:
        raise CheckpointError(
            "the snapshot's optimizer has other parameter groups. "
            "Resume with the learning rates (the parts that learn) the run was started with."
        )
    flat: Sequence[tuple[str, Tensor]] = [
        (name, parameter)
        for members, group in zip(own, optimizer.param_groups, strict=True)
        for name, parameter in zip(members, group["params"], strict=True)
    ]
    index = {name: position for position, (name, _) in enumerate(flat)}
    state: dict[int, dict[str, Any]] = {
        index[name]: dict(own_values) for name, own_values in rest["values"].items()
    }
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition("/")
        parameter = flat[index[name]][1]
        # A step count is one number, also where the parameter is sharded.
        sharded = value.shape == parameter.shape
        own_value = _sharded_like(value, parameter) if sharded else value
        state.setdefault(index[name], {})[key] = own_value.clone()  # a file may be mapped memory
    groups = []
    for members, stored, group in zip(own, rest["groups"], optimizer.param_groups, strict=True):
        settings = {
            key: tuple(value) if isinstance(group.get(key), tuple) else value
            for key, value in stored.items()
        }
        groups.append({**settings, "params": [index[name] for name in members]})
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for position, own_state in state.items():  # torch casts what is no step count to the weight's
        for key, value in own_state.items():
            loaded = optimizer.state[flat[position][1]][key]
            if isinstance(value, Tensor) and loaded.dtype != value.dtype:
                optimizer.state[flat[position][1]][key] = value.to(loaded.device)


def _sharded_like(whole: Tensor, like: Tensor) -> Tensor:
    if not isinstance(like, DTensor):
        return whole
    # Every process holds the whole tensor (None: nothing is sent) and keeps its own part.
    return distribute_tensor(
        whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )


def _plain(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _names(model: nn.Module) -> dict[Tensor, str]:
    return {parameter: _plain(name) for name, parameter in model.named_parameters()}


def _name(names: Mapping[Tensor, str], parameter: Tensor) -> str:
    if parameter not in names:
        raise CheckpointError(
            "the optimizer holds a parameter that is not the model's. "
            "Make it from the parameters of the model that is trained."
        )
    return names[parameter]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")


__all__ = ["gather", "load_model", "load_optimizer", "model_tensors", "optimizer_state"]
