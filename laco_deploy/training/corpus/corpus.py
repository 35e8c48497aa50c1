"""`Corpus`: the samples of a mixture as one list."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence

import numpy as np

from laco_deploy.training.corpus.mixture import MixtureEntry
from laco_deploy.training.corpus.readers import READERS, Estimates, FileSettings, Kind, Reader
from laco_deploy.training.corpus.record import Broken, Record, SampleError
from laco_runtimes.errors import DataError

_FINGERPRINT_VERSION = 1


class Corpus:
    """The samples of a mixture, each entry with its weight or share, one entry after the other.

    Files are indexed here, once; samples are read when they are asked for. May be pickled.

    Args:
        entries: what `read_mixture` gives.
        seed: of random shares.

    Raises:
        DataError: no entries, a file that cannot be read at all, or no samples.
    """

    def __init__(self, entries: Sequence[MixtureEntry], seed: int = 0) -> None:
        self.entries = tuple(entries)
        self.seed = seed
        self.readers: list[Reader] = []
        self._kinds: list[Kind] = []
        parts, estimates, digests = [], [], []
        for number, entry in enumerate(self.entries):
            first = len(self.readers)
            for path, kind in entry.files():
                settings = FileSettings(path, entry.media_root or path.parent, entry.label)
                self.readers.append(READERS[kind](settings))
                self._kinds.append(kind)
            own = self.readers[first:]
            # [samples of the entry, 2]: the reader, and the place in it
            places = np.concatenate(
                [
                    np.stack([np.full(len(reader), first + i), np.arange(len(reader))], axis=1)
                    for i, reader in enumerate(own)
                ]
            )
            rows = entry.rows(len(places), np.random.default_rng([seed, number]))
            parts.append(places[rows])
            estimates.append(Estimates.join([reader.estimates for reader in own]).select(rows))
            digests.append([entry.weight, entry.take, [reader.fingerprint for reader in own]])
        if not sum(map(len, parts)):
            raise DataError("the mixture has no samples. Check its files, weights and shares.")
        self._places = np.concatenate(parts)
        self.estimates = Estimates.join(estimates)
        settled = json.dumps([_FINGERPRINT_VERSION, seed, digests])
        self.fingerprint = hashlib.sha256(settled.encode()).hexdigest()
        """Changes with the text of the data, the weights and the seed, not with where files lie."""

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Record:
        """Read a sample; its images are not decoded.

        Raises:
            SampleError: this sample cannot be used.
        """
        reader, row = self._place(index)
        return reader[row]

    def broken(self, index: int, error: SampleError) -> Broken:
        """A report on a sample that cannot be read."""
        reader, row = self._place(index)
        return Broken(error.name or reader.place(row), reader.label, str(error), error.fault)

    def _place(self, index: int) -> tuple[Reader, int]:
        number, row = map(int, self._places[index])
        return self.readers[number], row

    def kinds(self) -> dict[str, int]:
        """Samples by kind of file."""
        counts: Counter[str] = Counter()
        for number, samples in Counter(self._places[:, 0].tolist()).items():
            counts[self._kinds[number]] += samples
        return dict(sorted(counts.items()))

    @property
    def ignored(self) -> int:
        """Parts of the files that are of a kind that is not read."""
        return sum(reader.ignored for reader in self.readers)


__all__ = ["Corpus"]
