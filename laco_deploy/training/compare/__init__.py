"""The comparison of mergers on a tiny model: counterparts of the paper's Tables 1 and 8, Figure 4.

One model is pretrained without a merger. Every cell (a merger, its place, its rates, a seed) starts
from it, trains with the same budget on the same batches, and leaves one JSON file. The report is
made of those files alone.
"""

from laco_deploy.training.compare.cells import Cell, CellResult, plan
from laco_deploy.training.compare.report import write_report
from laco_deploy.training.compare.run import compare
from laco_deploy.training.compare.settings import BUDGETS, Budget

__all__ = ["BUDGETS", "Budget", "Cell", "CellResult", "compare", "plan", "write_report"]
