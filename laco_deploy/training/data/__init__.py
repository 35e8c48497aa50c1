"""Training data made on the spot: handwritten digits, shapes, words and charts to ask about.

Nothing is downloaded: the digits come with scikit-learn, the fonts with matplotlib.
"""

from laco_deploy.training.data.dataset import (
    DEFAULT_COUNTS,
    DatasetSummary,
    load_records,
    make_dataset,
)
from laco_deploy.training.data.digits import READING_TASKS
from laco_deploy.training.data.groups import GROUPS, TRAIN_WEIGHTS
from laco_deploy.training.data.scene import SPLITS
from laco_runtimes.errors import DataError

__all__ = [
    "DEFAULT_COUNTS",
    "GROUPS",
    "READING_TASKS",
    "SPLITS",
    "TRAIN_WEIGHTS",
    "DataError",
    "DatasetSummary",
    "load_records",
    "make_dataset",
]
