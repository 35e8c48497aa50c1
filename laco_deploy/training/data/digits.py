"""Handwritten digits: one large, two side by side as a number, or a few scattered to count."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from laco_deploy.training.data import scans
from laco_deploy.training.data.colors import background, ink_and_paper
from laco_deploy.training.data.scans import Scan, load_scans
from laco_deploy.training.data.scene import Question, Scene, Split, pick

READING_TASKS = ("read_digit", "read_number", "left_digit", "right_digit")

MAX_TILT_DEGREES = {"train": 8.0, "val": 5.0, "test": 5.0}
MAX_SHEAR = {"train": 0.12, "val": 0.08, "test": 0.08}

READ_DIGIT = ("What digit is this?", "Which digit do you see?", "What is the digit in the image?")
READ_NUMBER = ("What number is this?", "Which number do you see?", "What is the two-digit number?")
LEFT_DIGIT = (
    "What is the left digit?",
    "Which digit is on the left?",
    "What digit is on the left side?",
)
RIGHT_DIGIT = (
    "What is the right digit?",
    "Which digit is on the right?",
    "What digit is on the right side?",
)
COUNT_DIGITS = ("How many digits are there?", "How many digits do you see?", "Count the digits.")


@dataclass(frozen=True, slots=True)
class Placed:
    """A scan on the canvas: centre of its ink and height of its ink box, in parts of the canvas."""

    scan: Scan
    x: float
    y: float
    height: float

    @property
    def width(self) -> float:
        """Width of the ink box in parts of the canvas."""
        left, top, right, bottom = self.scan.box
        return self.height * (right - left) / (bottom - top)


class DigitScenes:
    """Scenes of handwritten digits; a split only ever shows its own scans."""

    tasks = (*READING_TASKS, "count_digits")
    train_tasks = ("read_digit", *READING_TASKS, "count_digits")
    source = scans.SOURCE

    def render(self, rng: np.random.Generator, split: Split, canvas: int, task: str) -> Scene:
        """One digit, two as a number, or one to four to count."""
        layouts = {"read_digit": _one, "count_digits": _scattered}
        placed, questions = layouts.get(task, _two)(rng, load_scans(split))
        return Scene(_paint(rng, split, canvas, placed), questions)


def _one(
    rng: np.random.Generator, source: tuple[Scan, ...]
) -> tuple[list[Placed], tuple[Question, ...]]:
    scan = pick(rng, source)
    height = rng.uniform(0.70, 0.92)
    play = (1.0 - height) / 2 * 0.7
    placed = Placed(scan, 0.5 + rng.uniform(-play, play), 0.5 + rng.uniform(-play, play), height)
    return [placed], (
        Question("read_digit", READ_DIGIT, str(scan.digit)),
        Question("count_digits", COUNT_DIGITS, "1"),
    )


def _two(
    rng: np.random.Generator, source: tuple[Scan, ...]
) -> tuple[list[Placed], tuple[Question, ...]]:
    left, right = pick(rng, source), pick(rng, source)
    height = rng.uniform(0.60, 0.76)
    pair = [
        Placed(
            scan,
            centre + rng.uniform(-0.02, 0.02),
            0.5 + rng.uniform(-0.05, 0.05),
            height * rng.uniform(0.92, 1.0),
        )
        for scan, centre in ((left, 0.27), (right, 0.73))
    ]
    # A digit must stay in its half of the canvas: 0.40 leaves a gap also when it leans.
    placed = [Placed(p.scan, p.x, p.y, p.height * min(1.0, 0.40 / p.width)) for p in pair]
    return placed, (
        Question("read_number", READ_NUMBER, f"{left.digit}{right.digit}"),
        Question("left_digit", LEFT_DIGIT, str(left.digit)),
        Question("right_digit", RIGHT_DIGIT, str(right.digit)),
        Question("count_digits", COUNT_DIGITS, "2"),
    )


def _scattered(
    rng: np.random.Generator, source: tuple[Scan, ...]
) -> tuple[list[Placed], tuple[Question, ...]]:
    count = int(rng.integers(1, 5))
    if count == 1:
        return _one(rng, source)
    chosen = [pick(rng, source) for _ in range(count)]
    height = rng.uniform(0.30, 0.40)
    while True:
        placed = []
        for scan in chosen:
            half = height / 2 + 0.03
            placed.append(
                Placed(scan, rng.uniform(half, 1 - half), rng.uniform(half, 1 - half), height)
            )
        if _all_apart(placed):
            break
        height = max(0.27, height * 0.995)
    return placed, (Question("count_digits", COUNT_DIGITS, str(count)),)


def _all_apart(placed: list[Placed]) -> bool:
    gap = 0.05
    return all(
        abs(a.x - b.x) > (a.width + b.width) / 2 + gap
        or abs(a.y - b.y) > (a.height + b.height) / 2 + gap
        for i, a in enumerate(placed)
        for b in placed[:i]
    )


def _paint(
    rng: np.random.Generator, split: Split, canvas: int, placed: list[Placed]
) -> Image.Image:
    ink, paper = ink_and_paper(rng)
    image = background(rng, canvas, paper)
    threshold, softness = rng.uniform(75, 120), rng.uniform(50, 120)
    curve = [round(min(255.0, max(0.0, (v - threshold) / softness * 255))) for v in range(256)]
    tilt = math.radians(rng.uniform(-1, 1) * MAX_TILT_DEGREES[split])
    for item in placed:
        lean = tilt + math.radians(rng.uniform(-1, 1) * 2)
        mask = _warp(item, canvas, lean, rng.uniform(-1, 1) * MAX_SHEAR[split]).point(curve)
        image.paste(ink, (0, 0), mask)
    return image


def _warp(item: Placed, canvas: int, tilt: float, shear: float) -> Image.Image:
    """Ink of a scan on the whole canvas, turned by `tilt` radians, slanted by `shear` (x per y)."""
    left, top, right, bottom = item.scan.box
    zoom = (bottom - top) / (item.height * canvas)  # scan pixels per canvas pixel
    cos, sin = zoom * math.cos(tilt), zoom * math.sin(tilt)
    a, b = cos + shear * -sin, sin + shear * cos
    d, e = -sin, cos
    x, y = item.x * canvas, item.y * canvas
    coefficients = (
        a,
        b,
        (left + right) / 2 - a * x - b * y,
        d,
        e,
        (top + bottom) / 2 - d * x - e * y,
    )
    return item.scan.ink.transform(
        (canvas, canvas), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )
