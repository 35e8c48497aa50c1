"""What a model says to the questions, in files: a large vocabulary fills memory quickly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from laco_export.disk_array import disk_array
from laco_export.parity.questions import QuestionSet
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
        tiles: of all images.
        tokens_per_tile: N'.
        width: D.
        answers: how many answers.
        length: tokens of the longest.
        vocabulary: V.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tiles: int,
        tokens_per_tile: int,
        width: int,
        answers: int,
        length: int,
        vocabulary: int,
    ) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.features: Floats = self._make("features", np.float32, tiles, tokens_per_tile, width)
        self.logits: Floats = self._make("logits", np.float32, answers, length, vocabulary)
        self.tokens: NDArray[np.int64] = self._make("tokens", np.int64, answers, length)
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
    facts = asked.job.language
    files = AnswerFiles(
        folder,
        tiles=len(asked.tile_names),
        tokens_per_tile=asked.job.variants[0].tokens_per_tile,
        width=facts.hidden_size,
        answers=len(asked.answered),
        length=asked.longest,
        vocabulary=facts.vocab_size,
    )
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


__all__ = ["UNUSED", "AnswerFiles", "Answers", "ask_engine", "prompt_embeds"]
