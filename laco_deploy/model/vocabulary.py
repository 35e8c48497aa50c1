"""The tokenizer of a composed model: read from a folder, or a small one made on the spot.

Special tokens are looked up by name: their ids and their number differ from one language model of
the Qwen family to the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from laco_deploy.training.tokenizer import END_TOKEN, IMAGE_TOKEN, PAD_TOKEN, train_tokenizer
from laco_runtimes.errors import BundleError, CheckpointError, ConfigError
from laco_runtimes.prompt import DEFAULT_SYSTEM, load_tokenizer

START_TOKEN = "<|im_start|>"
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer that holds every special token a composed model needs."""

    tokenizer: PreTrainedTokenizerBase
    is_published: bool
    """Whether it came from a folder."""

    @property
    def image_token_id(self) -> int:
        """Id that stands for one visual token."""
        return self._id(IMAGE_TOKEN)

    @property
    def end_token_id(self) -> int:
        """Id that ends a turn, and with it an answer."""
        return self._id(END_TOKEN)

    def _id(self, token: str) -> int:
        index = self.tokenizer.convert_tokens_to_ids(token)
        if not isinstance(index, int):  # checked when the tokenizer was read
            raise CheckpointError(f"the tokenizer has no {token}. Use one of the Qwen family.")
        return index


def read_vocabulary(folder: Path, rows: int, max_length: int) -> Vocabulary:
    """Read `tokenizer.json` as it stands; only a missing image token is added.

    Args:
        folder: of the language model, or of its tokenizer.
        rows: of the language model's embedding.
        max_length: longest sequence of the language model.

    Raises:
        CheckpointError: no such file, a damaged one, or one without the ChatML tokens.
        ConfigError: more tokens than rows.
    """
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise CheckpointError(
            f"'{folder}' holds no {TOKENIZER_FILE}. Name the folder of the tokenizer: --tokenizer."
        )
    try:
        known = load_tokenizer(path).get_vocab(with_added_tokens=True)
    except BundleError as error:
        raise CheckpointError(
            f"'{path}' cannot be read as a tokenizer. Copy it from the original checkpoint."
        ) from error
    for token in (START_TOKEN, END_TOKEN):
        if token not in known:
            raise CheckpointError(
                f"the tokenizer in '{folder}' has no {token}. Use one of the Qwen family."
            )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(path),
        eos_token=END_TOKEN,
        pad_token=PAD_TOKEN if PAD_TOKEN in known else END_TOKEN,
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
    )
    # Qwen2.5 has it, in the rows that Qwen2 leaves unused.
    if IMAGE_TOKEN not in known:
        tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True)], special_tokens=True)
    highest = max(tokenizer.get_vocab().values())
    if highest >= rows:
        raise ConfigError(
            f"the tokenizer in '{folder}' with {IMAGE_TOKEN} needs {highest + 1} embedding rows, "
            f"the language model has {rows}. Use the tokenizer of that language model, or one "
            "whose embedding has a row to spare."
        )
    return Vocabulary(tokenizer, is_published=True)


def small_vocabulary(max_length: int) -> Vocabulary:
    """A byte-level tokenizer of a few hundred tokens, for a model with random weights."""
    tokenizer = train_tokenizer(["system", "user", "assistant", "\n", DEFAULT_SYSTEM])
    tokenizer.model_max_length = max_length
    return Vocabulary(tokenizer, is_published=False)


__all__ = ["TOKENIZER_FILE", "Vocabulary", "read_vocabulary", "small_vocabulary"]
