"""Make the sample images of this folder again: `python samples/make_images.py [folder]`.

Deterministic. Needs the training extra (`pip install 'laco-deploy[train]'`): the digits and the
photo come with scikit-learn, the fonts with matplotlib.
"""

import io
import json
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from laco_deploy.training.data import GROUPS
from laco_deploy.training.data.fonts import load_font

CANVAS = 336
SCENES = {
    "digit_single.png": ("digits", "read_digit", 13),
    "digits_number.png": ("digits", "read_number", 4),
    "shapes.png": ("shapes", "shape_color", 1),
    "chart.png": ("charts", "bar_value", 3),
}
"""Group, task and seed of each rendered scene. Only digits of the test split are shown."""
PROMPTS = {"chart.png": "What is the value of B?"}
"""Where a scene has several questions of its task: the one to ask."""

INK, FAINT, ACCENT = (30, 34, 42), (120, 126, 136), (38, 84, 160)
ITEMS = (
    ("Vision sensor 5 MP, C-mount", 2, 310.00),
    ("Industrial PC, 16 GB", 1, 1240.00),
    ("Ring light, white, 24 V", 4, 58.50),
    ("Cable M12, 5 m", 6, 19.90),
)
VAT = 0.20


def scene(name: str) -> tuple[bytes, dict[str, str]]:
    """PNG of a rendered scene, and its entry of questions.json."""
    group, task, seed = SCENES[name]
    # 99 is no split of a data set (those are 0 to 2), so this picture is in none.
    made = GROUPS[group].render(np.random.default_rng([seed, 99]), "test", CANVAS, task)
    fitting = [question for question in made.questions if question.task == task]
    wanted = PROMPTS.get(name, fitting[0].prompts[0])
    question = next(question for question in fitting if wanted in question.prompts)
    return png(made.image), {"image": name, "prompt": wanted, "answer": question.answer}


def document() -> bytes:
    """PNG of an invoice of an invented company, 600 x 800 pixels."""
    image = Image.new("RGB", (600, 800), (252, 252, 250))
    pen = ImageDraw.Draw(image)

    def put(
        x: int, y: int, text: str, size: int, color: tuple[int, int, int] = INK, **how: str
    ) -> None:
        font = load_font("DejaVuSans-Bold" if how.get("weight") == "bold" else "DejaVuSans", size)
        pen.text((x, y), text, font=font, fill=color, anchor=how.get("anchor", "ls"))

    pen.rectangle((0, 0, 600, 12), fill=ACCENT)
    put(48, 80, "Northwind Optics", 24, ACCENT, weight="bold")
    put(48, 104, "12 Harbour Road, Port Ellis", 13, FAINT)
    put(552, 84, "INVOICE", 34, weight="bold", anchor="rs")
    for row, (label, value) in enumerate(
        (("Number", "2024-0187"), ("Date", "14 March 2024"), ("Due", "13 April 2024"))
    ):
        put(400, 124 + 22 * row, label, 13, FAINT)
        put(552, 124 + 22 * row, value, 13, anchor="rs")
    put(48, 160, "Bill to", 13, FAINT)
    for row, line in enumerate(("Blue Mill Bakery", "3 Market Square", "Easton")):
        put(48, 184 + 22 * row, line, 16, weight="bold" if row == 0 else "regular")

    pen.rectangle((48, 270, 552, 300), fill=(232, 238, 247))
    heads = ((60, "Item", "ls"), (372, "Qty", "rs"), (456, "Price", "rs"), (540, "Amount", "rs"))
    for x, text, anchor in heads:
        put(x, 291, text, 14, weight="bold", anchor=anchor)
    y = 330
    for name, quantity, price in ITEMS:
        put(60, y, name, 14)
        put(372, y, str(quantity), 14, anchor="rs")
        put(456, y, f"{price:,.2f}", 14, anchor="rs")
        put(540, y, f"{quantity * price:,.2f}", 14, anchor="rs")
        pen.line((48, y + 14, 552, y + 14), fill=(216, 220, 226))
        y += 44
    net = sum(quantity * price for _, quantity, price in ITEMS)
    y += 10
    for label, amount in (("Subtotal", net), (f"VAT {VAT:.0%}", net * VAT)):
        put(456, y, label, 14, FAINT, anchor="rs")
        put(540, y, f"{amount:,.2f}", 14, anchor="rs")
        y += 30
    pen.line((340, y - 14, 552, y - 14), fill=INK, width=2)
    put(430, y + 16, "Total EUR", 18, weight="bold", anchor="rs")
    put(540, y + 16, f"{net * (1 + VAT):,.2f}", 18, weight="bold", anchor="rs")
    put(48, 720, "Please pay within 30 days. Thank you for your order!", 14)
    put(48, 746, "Sample page of laco-deploy. The companies are invented.", 11, FAINT)
    return png(image)


def png(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def main(folder: Path) -> None:
    """Make everything in memory, then write it."""
    made = {name: scene(name) for name in SCENES}
    contents = {name: data for name, (data, _) in made.items()}
    contents["document.png"] = document()
    contents["flower.jpg"] = (files("sklearn.datasets.images") / "flower.jpg").read_bytes()
    questions = [entry for _, entry in made.values()]
    contents["questions.json"] = (json.dumps(questions, indent=2) + "\n").encode()
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
        print(f"{folder / name}  {len(data)} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images")
