"""How an export comes to the modules of a checkpoint, in whichever process needs them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from laco_export.job import Modules


@dataclass(frozen=True, slots=True)
class ModuleSource:
    """Reads a checkpoint when it is called.

    A job carries it to every stage's process. Most of them never call it, and without that they
    import neither torch nor transformers, which takes seconds.
    """

    root: Path
    """The checkpoint folder."""
    baselines: tuple[str, ...] = ()
    """Encoders to build beside the trained one, keys of `laco_deploy.baselines.BASELINES`."""

    def __call__(self) -> Modules:
        """The modules.

        Raises:
            CheckpointError: the weights cannot be read.
        """
        from laco_deploy.exporting import modules_of
        from laco_deploy.model.checkpoint import load_checkpoint

        return modules_of(load_checkpoint(self.root), self.baselines)


__all__ = ["ModuleSource"]
