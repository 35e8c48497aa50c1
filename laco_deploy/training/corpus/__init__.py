"""Training data: files of several formats as one list of samples, and samples as tensors."""

from __future__ import annotations

from laco_deploy.training.corpus.chat import ChatOptions
from laco_deploy.training.corpus.collate import Collator
from laco_deploy.training.corpus.corpus import Corpus
from laco_deploy.training.corpus.mixture import MixtureEntry, read_mixture
from laco_deploy.training.corpus.record import Broken, Record, Turn
from laco_deploy.training.corpus.sampler import LengthGroupedSampler
from laco_deploy.training.corpus.training_set import Encoded, TrainingSet

__all__ = [
    "Broken",
    "ChatOptions",
    "Collator",
    "Corpus",
    "Encoded",
    "LengthGroupedSampler",
    "MixtureEntry",
    "Record",
    "TrainingSet",
    "Turn",
    "read_mixture",
]
