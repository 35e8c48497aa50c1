"""What a model says to the questions, in files: a large vocabulary fills memory quickly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from laco_export.disk_array import disk_array
from laco_export.parity.questions import QuestionSet
from laco_export.parity.rows import ROWS, Rows
from laco_export.protocols import Floats
from laco_runtimes.engines.base import LoadedEngine
from laco_runtimes.generation import greedy, splice

UNUSED = -1
"""Behind the end of an answer that is shorter than others."""


@dataclass(frozen=True, slots=True)
class Answers:
    """A folder of three arrays."""

    folder: Path

    @property
    def features(self) -> Floats:
        """Of the tiles of all images in turn, [tiles, N', D]."""
        return self._array("features")

    @property
    def logits(self) -> Floats:
        """Where each token of an answer was chosen, [answers, tokens, V]."""
        return self._array("logits")

    @property
    def tokens(self) -> NDArray[np.int64]:
        """What was fed back, [answers, tokens], `UNUSED` behind the end."""
        return self._array("tokens")

    def _array(self, name: str) -> NDArray:  # type: ignore[type-arg]
        return np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]


class AnswerFiles:
    """Makes the arrays of an `Answers` and fills them one by one.

    Args:
        folder: made.
        asked: the questions.
    """

    def __init__(self, folder: Path, asked: QuestionSet) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        facts, answers = asked.job.language, (len(asked.answered), asked.longest)
        tokens_per_tile = asked.job.variants[0].tokens_per_tile
        self.features: Floats = self._make(
            "features", np.float32, len(asked.tile_names), tokens_per_tile, facts.hidden_size
        )
        self.logits: Floats = self._make("logits", np.float32, *answers, facts.vocab_size)
        self.tokens: NDArray[np.int64] = self._make("tokens", np.int64, *answers)
        self.tokens[:] = UNUSED

    def _make(self, name: str, dtype: type, *shape: int) -> NDArray:  # type: ignore[type-arg]
        # An empty file cannot be mapped, and tests ask no more than a few tokens.
        path = self.folder / f"{name}.npy"
        if 0 in shape:
            np.save(path, np.zeros(shape, dtype), allow_pickle=False)
            return np.zeros(shape, dtype)
        return disk_array(path, dtype, shape)

    def done(self) -> Answers:
        """All of it, written."""
        for array in (self.features, self.logits, self.tokens):
            if isinstance(array, np.memmap):
                array.flush()
        return Answers(self.folder)


def prompt_embeds(
    engine: LoadedEngine, asked: QuestionSet, index: int, ids: Sequence[int], features: Floats
) -> Floats:
    """Embeddings of a prompt with its image, [sequence, D].

    Args:
        engine: embeds the ids.
        asked: the questions.
        index: of the question whose image it is.
        ids: of the prompt, or of the prompt and what follows.
        features: of the tiles of the image, [tiles, N', D].
    """
    visual = asked.arranged(index, features)  # [tokens, D]
    return splice(engine.language.embed(ids), ids, visual, asked.job.prompt.image_token_id)


def ask_engine(
    engine: LoadedEngine,
    asked: QuestionSet,
    folder: Path,
    step: Callable[[], None],
    *,
    forced: NDArray[np.int64] | None = None,
) -> Answers:
    """Show an engine every image and let it answer where the set says so.

    Args:
        engine: runs the model as trained.
        asked: the questions.
        folder: where to write; made.
        step: called after each image.
        forced: tokens to feed back whatever it would say itself, [answers, tokens]. None, and
            `UNUSED` in a place, lets it answer freely: the likeliest token, past any stop token.
    """
    files = AnswerFiles(folder, asked)
    rows = {index: row for row, index in enumerate(asked.answered)}
    for index, question in enumerate(asked.questions):
        features = engine.vision.encode(asked.pixel_values(index))  # [tiles, N', D]
        files.features[asked.rows(index)] = features
        if index in rows:
            row = rows[index]
            embeds = prompt_embeds(engine, asked, index, question.ids, features)
            engine.language.rewind(0)
            logits = engine.language.prefill(embeds)
            for place in range(question.tokens):
                files.logits[row, place] = logits
                token = UNUSED if forced is None else int(forced[row, place])
                if token == UNUSED:
                    token = greedy(logits)
                files.tokens[row, place] = token
                if place + 1 < question.tokens:
                    logits = engine.language.step(token)
        step()
    return files.done()


def ask_together(
    engine: LoadedEngine,
    rows: Rows,
    asked: QuestionSet,
    folder: Path,
    step: Callable[[], None],
    *,
    forced: NDArray[np.int64],
    known: Mapping[int, Floats],
) -> Answers:
    """The same of the fp32 graphs, several answers at a time.

    Args:
        engine: runs the graphs.
        rows: answers of its decoder that grow together; empty.
        asked: the questions.
        folder: where to write; made.
        step: called after each image.
        forced: as of `ask_engine`.
        known: visual tokens of images that were encoded before, [tiles, N', D], by the number of
            the question.
    """
    files = AnswerFiles(folder, asked)
    waiting: list[tuple[int, Floats]] = []  # rows in the files, and logits behind their prompts
    last = len(asked.questions) - 1
    for index, question in enumerate(asked.questions):
        features = known.get(index)
        if features is None:
            features = engine.vision.encode(asked.pixel_values(index))  # [tiles, N', D]
        files.features[asked.rows(index)] = features
        if index in asked.answered:
            embeds = prompt_embeds(engine, asked, index, question.ids, features)
            waiting.append((asked.answered.index(index), rows.add(embeds)))
        if waiting and (len(waiting) == ROWS or index == last):
            _answer(engine, rows, asked, files, waiting, forced)
            rows.clear()
            waiting = []
        step()
    return files.done()


def _answer(
    engine: LoadedEngine,
    rows: Rows,
    asked: QuestionSet,
    files: AnswerFiles,
    waiting: Sequence[tuple[int, Floats]],
    forced: NDArray[np.int64],
) -> None:
    """Answers to all prompts of a batch, each as long as its question asks."""
    places = [row for row, _ in waiting]
    logits = np.stack([one for _, one in waiting])  # [rows, V]
    lengths = [asked.questions[asked.answered[row]].tokens for row in places]
    for place in range(max(lengths)):
        tokens = []
        for row, length, found in zip(places, lengths, logits, strict=True):
            given = int(forced[row, place])
            tokens.append(given if given != UNUSED else greedy(found))
            if place < length:
                files.logits[row, place], files.tokens[row, place] = found, tokens[-1]
        if place + 1 < max(lengths):
            logits = rows.step(engine.language.embed(tokens))


__all__ = ["UNUSED", "AnswerFiles", "Answers", "ask_engine", "ask_together", "prompt_embeds"]
