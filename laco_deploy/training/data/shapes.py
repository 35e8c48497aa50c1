"""Coloured shapes: which colour, which shape, how many, on which side."""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from laco_deploy.training.data.colors import COLORS, background, neutral_paper
from laco_deploy.training.data.scene import Question, Scene, Split, draw, pick

SUPERSAMPLING = 3
MIN_SIZE = 0.34
MAX_SIZE = {1: 0.64, 2: 0.48, 3: 0.44}
"""Largest diameter in parts of the canvas, by number of shapes."""
_TRIES = 16

CLEAR_SIDE = 0.12
"""A side is only asked about when the centre is this far from the middle (part of the canvas)."""

COLOR_OF = (
    "What color is the {kind}?",
    "Which color does the {kind} have?",
    "What is the color of the {kind}?",
)
KIND_OF = ("What shape is {color}?", "Which shape is {color}?", "What is the {color} shape?")
COUNT = ("How many shapes are there?", "How many shapes do you see?", "Count the shapes.")
LEFT_RIGHT = (
    "Is the {color} {kind} on the left or right?",
    "Is the {color} {kind} on the left or the right side?",
)
TOP_BOTTOM = (
    "Is the {color} {kind} at the top or bottom?",
    "Is the {color} {kind} in the top or the bottom half?",
)


@dataclass(frozen=True, slots=True)
class Shape:
    """A shape: centre and diameter in parts of the canvas, turned by `angle` radians."""

    kind: str
    color: str
    x: float
    y: float
    size: float
    angle: float


def _corners(radii: list[float]) -> list[tuple[float, float]]:
    """Corners of a polygon around the origin, the first one straight up."""
    step = 2 * math.pi / len(radii)
    return [(r * math.sin(i * step), -r * math.cos(i * step)) for i, r in enumerate(radii)]


_SQUARE = [(-0.44, -0.44), (0.44, -0.44), (0.44, 0.44), (-0.44, 0.44)]
_TRIANGLE = [(x, y + 0.1) for x, y in _corners([0.58] * 3)]
POLYGONS: dict[str, list[tuple[float, float]]] = {
    "circle": _corners([0.5] * 72),
    "square": _SQUARE,
    "triangle": _TRIANGLE,
    "star": _corners([0.56, 0.22] * 5),
}
KINDS = tuple(POLYGONS)


class ShapeScenes:
    """One to three coloured shapes that do not overlap."""

    tasks = ("shape_color", "shape_kind", "shape_count", "shape_side")
    train_tasks = tasks
    source = "drawn by laco-deploy"

    def render(self, rng: np.random.Generator, split: Split, canvas: int, task: str) -> Scene:
        """Arrange shapes until something of `task` can be asked clearly."""
        while True:
            shapes = _arrange(rng)
            questions = _questions(shapes)
            # Shapes that are all alike leave nothing to ask but their number: draw again.
            if len(questions) > 1 and any(question.task == task for question in questions):
                return Scene(_paint(rng, canvas, shapes), questions)


def _arrange(rng: np.random.Generator) -> list[Shape]:
    count = int(rng.integers(1, 4))
    kinds = [pick(rng, KINDS) for _ in range(count)]
    all_differ = rng.random() < 0.7
    colors = (
        draw(rng, tuple(COLORS), count) if all_differ else [pick(rng, tuple(COLORS)) for _ in kinds]
    )
    while True:
        shapes: list[Shape] = []
        for kind, color in zip(kinds, colors, strict=True):
            size = rng.uniform(MIN_SIZE, MAX_SIZE[count])
            low, high = size / 2 + 0.04, 1 - size / 2 - 0.04
            free = [
                (x, y)
                for x, y in rng.uniform(low, high, (_TRIES, 2)).tolist()
                if _is_free(shapes, x, y, size)
            ]
            if not free:
                break
            shapes.append(Shape(kind, color, *free[0], size, math.radians(rng.uniform(-12, 12))))
        else:
            return shapes


def _is_free(shapes: list[Shape], x: float, y: float, size: float) -> bool:
    return all(math.hypot(s.x - x, s.y - y) > 0.56 * (s.size + size) + 0.03 for s in shapes)


def _phrase(prompts: tuple[str, ...], shape: Shape) -> tuple[str, ...]:
    return tuple(prompt.format(kind=shape.kind, color=shape.color) for prompt in prompts)


def _questions(shapes: list[Shape]) -> tuple[Question, ...]:
    kinds = Counter(shape.kind for shape in shapes)
    colors = Counter(shape.color for shape in shapes)
    pairs = Counter((shape.kind, shape.color) for shape in shapes)
    questions = [Question("shape_count", COUNT, str(len(shapes)))]
    for shape in shapes:
        if kinds[shape.kind] == 1:
            questions.append(Question("shape_color", _phrase(COLOR_OF, shape), shape.color))
        if colors[shape.color] == 1:
            questions.append(Question("shape_kind", _phrase(KIND_OF, shape), shape.kind))
        if pairs[shape.kind, shape.color] > 1:
            continue
        if abs(shape.x - 0.5) > CLEAR_SIDE:
            questions.append(
                Question(
                    "shape_side", _phrase(LEFT_RIGHT, shape), "left" if shape.x < 0.5 else "right"
                )
            )
        if abs(shape.y - 0.5) > CLEAR_SIDE:
            questions.append(
                Question(
                    "shape_side", _phrase(TOP_BOTTOM, shape), "top" if shape.y < 0.5 else "bottom"
                )
            )
    return tuple(questions)


def _paint(rng: np.random.Generator, canvas: int, shapes: list[Shape]) -> Image.Image:
    paper = background(rng, canvas, neutral_paper(rng))
    image = paper.resize((canvas * SUPERSAMPLING,) * 2, Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(image)
    for shape in shapes:
        cos, sin = math.cos(shape.angle), math.sin(shape.angle)
        points = [
            (
                (shape.x + shape.size * (cos * x - sin * y)) * image.width,
                (shape.y + shape.size * (sin * x + cos * y)) * image.width,
            )
            for x, y in POLYGONS[shape.kind]
        ]
        pen.polygon(points, fill=COLORS[shape.color])
    return image.reduce(SUPERSAMPLING)
