"""Data, tokenizer and the model without mergers from which every cell starts."""

from __future__ import annotations

import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from laco_deploy.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from laco_deploy.model.modeling import LacoForConditionalGeneration
from laco_deploy.training.compare.fit import Fit, Schedule, Snapshots, fit
from laco_deploy.training.compare.insertion import with_mergers
from laco_deploy.training.compare.peers import Peers, gather
from laco_deploy.training.compare.pictures import Pictures, batch_order, write_pixels
from laco_deploy.training.compare.settings import Budget
from laco_deploy.training.data import make_dataset
from laco_deploy.training.dataset import Sample, read_samples
from laco_deploy.training.evaluation import Score, evaluate
from laco_deploy.training.parts import Part
from laco_deploy.training.progress import Progress
from laco_deploy.training.tokenizer import END_TOKEN, IMAGE_TOKEN, PAD_TOKEN, train_tokenizer
from laco_deploy.training.train import corpus_of, start_positions
from laco_runtimes.errors import CheckpointError
from laco_runtimes.prompt import PromptTemplate, chatml, load_tokenizer

RECORD = "training.json"
_SNAPSHOT = "pretraining.safetensors"


@dataclass(frozen=True, slots=True)
class Workshop:
    """What every cell needs, in one process."""

    checkpoint: Checkpoint
    """Of the pretrained model."""
    tokenizer: Tokenizer
    pictures: Pictures
    test: list[Sample]

    def score(self, model: LacoForConditionalGeneration, limit: int | None = None) -> list[Score]:
        """Exact match of greedy answers to the test questions, or the first `limit` of them."""
        return evaluate(
            model,
            self.test[:limit],
            self.tokenizer,
            self.checkpoint.template,
            self.checkpoint.preprocessing,
        )


def prepare(root: Path, budget: Budget, *, workers: int, progress: Progress) -> None:
    """Make the data under `root` where they are missing.

    Raises:
        DataError: another data set lies there.
    """
    recipe = budget.recipe
    with progress.task("pictures and questions") as advance:
        make_dataset(
            root / "data",
            counts=recipe.counts,
            groups=recipe.groups,
            seed=budget.pretrain_seed,
            workers=workers,
            progress=advance,
        )
    train = read_samples(root / "data" / "train.json")
    with progress.task("pixels") as advance:
        write_pixels(_pixels(root, budget), train, recipe.image_size, advance)


def pretrain(
    root: Path,
    budget: Budget,
    *,
    workers: int,
    progress: Progress,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Train the model without mergers into `root/pretrained`, or go on where that was left.

    Raises:
        CheckpointError: the model there was trained with other settings.
    """
    out = root / "pretrained"
    if (out / RECORD).is_file():
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
        if record["digest"] != budget.pretraining_digest:
            raise CheckpointError(
                f"'{out}' was trained with other settings. Choose another folder for this budget."
            )
        return
    tokenizer = _make_tokenizer(root, budget)
    with (
        progress.task("pretraining") as advance,
        gather(workers, _help, root, budget, tokenizer) as peers,
    ):

        def tell(done: int, total: int) -> None:
            advance(done, total)
            if done * 10 // total > (done - 1) * 10 // total:
                say(f"pretraining: {done} of {total} steps")

        model, state = _fit_share(peers, root, budget, tokenizer, tell)
    train, test = (read_samples(root / "data" / f"{split}.json") for split in ("train", "test"))
    plain, template = _plain(tokenizer, model.config.image_token_id)
    preprocessing = budget.recipe.preprocessing()
    with progress.task("test questions") as advance:
        scores = evaluate(model, test, plain, template, preprocessing, progress=advance)
    record = {
        "digest": budget.pretraining_digest,
        "torch": torch.__version__,
        "workers": workers,
        "wall_seconds": state.wall_seconds,
        "cpu_seconds": workers * state.cpu_seconds,  # they do the same work
        "losses": state.losses,
        "test": [asdict(score) for score in scores],
        "guesses": [asdict(score) for score in guesses(train, test)],
    }

    def add_record(folder: Path) -> None:
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    save_checkpoint(
        out, model=model, tokenizer=tokenizer, preprocessing=preprocessing, extra=add_record
    )
    (root / _SNAPSHOT).unlink(missing_ok=True)


def _help(peers: Peers, root: Path, budget: Budget, tokenizer: PreTrainedTokenizerFast) -> None:
    _fit_share(peers, root, budget, tokenizer, None)


def _fit_share(
    peers: Peers,
    root: Path,
    budget: Budget,
    tokenizer: PreTrainedTokenizerFast,
    advance: Callable[[int, int], None] | None,
) -> tuple[LacoForConditionalGeneration, Fit]:
    """Train on this process's part of every batch; all end with the same model."""
    recipe = budget.recipe
    image, end, pad = map(tokenizer.vocab.__getitem__, (IMAGE_TOKEN, END_TOKEN, PAD_TOKEN))
    config = recipe.config(image_token_id=image, eos_token_id=end, pad_token_id=pad)
    torch.manual_seed(budget.pretrain_seed)
    model = LacoForConditionalGeneration(with_mergers(config, ()))
    start_positions(model)
    plain, template = _plain(tokenizer, image)
    samples = read_samples(root / "data" / "train.json")
    pictures = Pictures(
        samples, _pixels(root, budget), plain, template, recipe.preprocessing(), pad
    )
    batches = batch_order(
        len(pictures),
        batch_size=recipe.batch_size,
        steps=recipe.steps,
        seed=budget.pretrain_seed,
    )
    parts: tuple[Part, ...] = ("tower", "projector", "language_model")
    state = fit(
        model,
        pictures,
        batches,
        learning_rates=dict.fromkeys(parts, recipe.learning_rate),
        schedule=Schedule(steps=recipe.steps, warmup_steps=recipe.warmup_steps, floor_share=0.0),
        beta2=0.95,
        weight_decay=recipe.weight_decay,
        peers=peers,
        snapshots=Snapshots(root / _SNAPSHOT, budget.pretraining_digest),
        progress=advance,
    )
    return model, state


def _make_tokenizer(root: Path, budget: Budget) -> PreTrainedTokenizerFast:
    return train_tokenizer(
        corpus_of(read_samples(root / "data" / "train.json")), budget.recipe.vocab_size
    )


def _plain(tokenizer: PreTrainedTokenizerFast, image: int) -> tuple[Tokenizer, PromptTemplate]:
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save_pretrained(scratch)
        plain = load_tokenizer(Path(scratch) / "tokenizer.json")
    return plain, chatml(plain, image_token_id=image)


def open_workshop(root: Path, budget: Budget) -> Workshop:
    """Read the pretrained model and the data; both must be there."""
    checkpoint = load_checkpoint(root / "pretrained")
    tokenizer = load_tokenizer(checkpoint.tokenizer_path)
    train = read_samples(root / "data" / "train.json")
    pictures = Pictures(
        train,
        _pixels(root, budget),
        tokenizer,
        checkpoint.template,
        checkpoint.preprocessing,
        int(checkpoint.config.text.pad_token_id or 0),
    )
    test = read_samples(root / "data" / "test.json")
    return Workshop(checkpoint, tokenizer, pictures, test)


def guesses(train: Sequence[Sample], test: Sequence[Sample]) -> list[Score]:
    """What a model that sees nothing could have: the commonest answer to each task in training."""
    answers: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for sample in train:
        for task, turn in zip(sample.tasks, sample.turns, strict=True):
            answers[sample.group, task][turn.answer] += 1
    hits: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for sample in test:
        key = sample.group, sample.tasks[0]
        common = answers[key].most_common(1)
        hits[key].append(bool(common) and common[0][0] == sample.turns[0].answer)
    return [Score(group, task, sum(row), len(row)) for (group, task), row in sorted(hits.items())]


def _pixels(root: Path, budget: Budget) -> Path:
    return root / f"pixels-{budget.recipe.image_size}.npy"


__all__ = ["RECORD", "Workshop", "guesses", "open_workshop", "prepare", "pretrain"]
