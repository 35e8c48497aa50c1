"""Coloured shapes: which colour, which shape, how many, on which side."""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from laco_deploy.training.data.colors import COLORS, background, contrast, neutral_paper
from laco_deploy.training.data.scene import Question, Scene, Split, draw, pick

SUPERSAMPLING = 3
QUARTERS = tuple((x, y) for y in (0.27, 0.73) for x in (0.27, 0.73))
"""Centres of the four quarters of the canvas; every shape lies in one of its own."""
PLAY = 0.03
"""How far a shape lies from its quarter's centre at most, along x and along y."""
SIZES = (0.34, 0.42)
"""Smallest and largest diameter in parts of the canvas."""
EDGE = 0.03
"""Width of the outline in parts of the canvas."""
DARK, LIGHT = (20, 20, 24), (245, 245, 245)
"""Colours of the outline. The same line around every fill makes edges look alike, whatever meets
there: an encoder alone told the four kinds apart in 91 % after 400 steps, 60 % without it."""
CHANCES = {1: 0.5, 2: 0.3, 3: 0.2}
"""How often so many shapes are drawn. Alone, a shape shows its kind and colour without the question
having to say which is meant: a model from scratch learns that first, and the rest from there."""

COUNT = ("How many shapes are there?", "How many shapes do you see?", "Count the shapes.")
COLOR_OF = (
    "What color is the {name}?",
    "Which color does the {name} have?",
    "What is the color of the {name}?",
)
KIND_OF = ("What shape is {color}?", "Which shape is {color}?", "What is the {color} shape?")
LEFT_RIGHT = (
    "Is the {name} on the left or right?",
    "Is the {name} on the left or the right side?",
)
TOP_BOTTOM = (
    "Is the {name} at the top or bottom?",
    "Is the {name} in the top or the bottom half?",
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
    """One to three coloured shapes, each in a quarter of its own."""

    tasks = ("shape_color", "shape_kind", "shape_count", "shape_side")
    train_tasks = tasks
    source = "drawn by laco-deploy"

    def render(self, rng: np.random.Generator, split: Split, canvas: int, task: str) -> Scene:
        """Arrange shapes until something of `task` can be asked clearly."""
        while True:
            shapes = _arrange(rng)
            by_kind = task == "shape_color" or (task != "shape_kind" and rng.random() < 0.5)
            questions = _questions(rng, shapes, by_kind=by_kind)
            # Shapes that are all alike leave nothing to ask but their number: draw again.
            if len(questions) > 1 and any(question.task == task for question in questions):
                return Scene(_paint(rng, canvas, shapes), questions)


def _arrange(rng: np.random.Generator) -> list[Shape]:
    count = int(rng.choice(list(CHANCES), p=list(CHANCES.values())))
    all_differ = rng.random() < 0.7
    colors = (
        draw(rng, tuple(COLORS), count)
        if all_differ
        else [pick(rng, tuple(COLORS)) for _ in range(count)]
    )
    return [
        Shape(
            kind=pick(rng, KINDS),
            color=color,
            x=x + rng.uniform(-PLAY, PLAY),
            y=y + rng.uniform(-PLAY, PLAY),
            size=rng.uniform(*SIZES),
            angle=math.radians(rng.uniform(-12, 12)),
        )
        for color, (x, y) in zip(colors, draw(rng, QUARTERS, count), strict=True)
    ]


def _questions(
    rng: np.random.Generator, shapes: list[Shape], *, by_kind: bool
) -> tuple[Question, ...]:
    """What may be asked: their number, and of each that can be named one feature and one side.

    All prompts of a picture name shapes by kind, or all by colour. Otherwise one turn of a dialogue
    would give away the answer to another, and a model would learn to read the dialogue where it
    should look at the picture.
    """
    questions = [Question("shape_count", COUNT, str(len(shapes)))]
    seen = Counter(shape.kind if by_kind else shape.color for shape in shapes)
    for shape in shapes:
        if seen[shape.kind if by_kind else shape.color] > 1:
            continue
        name = shape.kind if by_kind else f"{shape.color} shape"
        if by_kind:
            prompts = tuple(prompt.format(name=name) for prompt in COLOR_OF)
            questions.append(Question("shape_color", prompts, shape.color))
        else:
            prompts = tuple(prompt.format(color=shape.color) for prompt in KIND_OF)
            questions.append(Question("shape_kind", prompts, shape.kind))
        place, choices, (low, high) = pick(
            rng,
            ((shape.x, LEFT_RIGHT, ("left", "right")), (shape.y, TOP_BOTTOM, ("top", "bottom"))),
        )
        prompts = tuple(prompt.format(name=name) for prompt in choices)
        questions.append(Question("shape_side", prompts, low if place < 0.5 else high))
    return tuple(questions)


def _paint(rng: np.random.Generator, canvas: int, shapes: list[Shape]) -> Image.Image:
    color = neutral_paper(rng)
    paper = background(rng, canvas, color)
    image = paper.resize((canvas * SUPERSAMPLING,) * 2, Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(image)
    edge = max(DARK, LIGHT, key=lambda ink: contrast(ink, color))
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
        pen.line([*points, *points[:2]], fill=edge, width=round(EDGE * image.width), joint="curve")
    return image.reduce(SUPERSAMPLING)
