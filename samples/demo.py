"""What `make demo` runs: export the tiny model to two engines, chat, and measure.

python samples/demo.py [--train]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LACO = Path(sys.executable).with_name("laco")
QUESTIONS = 3
TARGETS = ("openvino", "onnxruntime")


def laco(*arguments: str | Path) -> None:
    """Run a verb in a process of its own, as a user would, and show the command first."""
    print(f"\n$ laco {' '.join(map(str, arguments))}", flush=True)
    subprocess.run([LACO, *arguments], cwd=ROOT, check=True)


def chat(engine: Path) -> bool:
    """Ask the sample questions; True when every answer is right."""
    from laco_deploy import Pipeline

    pipeline = Pipeline(engine)
    questions = json.loads((ROOT / "samples" / "images" / "questions.json").read_text())
    all_right = True
    for question in questions[:QUESTIONS]:
        image = ROOT / "samples" / "images" / question["image"]
        reply = pipeline.chat(image, question["prompt"])
        right = reply.text.strip().lower() == question["answer"]
        all_right &= right
        print(
            f"  {question['image']:<20} {question['prompt']:<36} {reply.text!r:<10} "
            f"(right answer: {question['answer']!r}){'' if right else '  <- wrong'}"
        )
    return all_right


def main() -> int:
    """Run the demo; the exit code is 0 when all answers were right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", action="store_true", help="train the model first (an hour)")
    train = parser.parse_args().train
    checkpoint = Path("runs/tiny" if train else "samples/laco-tiny")
    if train:
        laco("train", "--recipe", "tiny", "--out", checkpoint)
    engines = {target: Path("engine") / target for target in TARGETS}
    for target, engine in engines.items():
        laco(
            *("export", "--ckpt", checkpoint, "--target", target, "--out", engine),
            *("--baseline", "uncompressed,external,downsampled"),
        )
    right = True
    for target, engine in engines.items():
        print(f"\nChat on {target}:", flush=True)
        right &= chat(ROOT / engine)
    image = "samples/images/digit_single.png"
    laco("bench", engines["openvino"], "--image", image, "--prompt", "What digit is this?")
    print(f"\nThe report is {ROOT / 'report.html'}; the figures are in bench.json.")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
