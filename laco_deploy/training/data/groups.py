"""The table of picture groups. A new group is one file and one line in each table."""

from laco_deploy.training.data.charts import ChartScenes
from laco_deploy.training.data.digits import DigitScenes
from laco_deploy.training.data.scene import SceneMaker
from laco_deploy.training.data.shapes import ShapeScenes
from laco_deploy.training.data.text import TextScenes

GROUPS: dict[str, SceneMaker] = {
    "digits": DigitScenes(),
    "shapes": ShapeScenes(),
    "text": TextScenes(),
    "charts": ChartScenes(),
}

TRAIN_WEIGHTS: dict[str, float] = {"digits": 0.42, "shapes": 0.36, "text": 0.07, "charts": 0.15}
"""Part of the train pictures each group gets (of the groups asked for, in proportion).

Val and test go by task instead: every task of every group gets the same number of pictures.
"""
