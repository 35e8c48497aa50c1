"""What is wrong with data, found before a training run: the work of `laco data check`."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

from laco_deploy.training.corpus.chat import visual_marks
from laco_deploy.training.corpus.corpus import Corpus
from laco_deploy.training.corpus.mixture import MixtureEntry
from laco_deploy.training.corpus.record import Broken, Record, SampleError, image_faults
from laco_deploy.training.corpus.training_set import TrainingSet
from laco_deploy.training.corpus.video import FRAME_SUFFIXES, read_frames
from laco_runtimes.images import load_image


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known of a sample that was looked at."""

    name: str
    source: str
    images: int = 0
    videos: int = 0
    tokens: int = 0
    """With the visual ones; 0 where no checkpoint says."""
    cut: int = 0
    """Tokens beyond the greatest length."""
    digest: str = ""
    """Of the dialogue and the contents of its images and video."""
    broken: Broken | None = None


@dataclass(slots=True)
class SourceCount:
    """Samples of one data set."""

    samples: int = 0
    images: int = 0
    videos: int = 0
    text_only: int = 0
    broken: int = 0


@dataclass(slots=True)
class CheckReport:
    """Counts over a mixture; every sample of it once, whatever its weight."""

    sources: dict[str, SourceCount] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    """Samples by kind of file."""
    faults: dict[str, int] = field(default_factory=dict)
    """Broken samples by what is wrong with them."""
    cut: int = 0
    """Samples that are used, but cut off at the greatest length."""
    longest: int = 0
    """Tokens of the longest sample, not cut off."""
    same_id: int = 0
    """Samples whose id another one of their data set has had before."""
    same_content: int = 0
    """Samples that another one is equal to, images included."""
    ignored: int = 0
    """Members of shards that are of a kind that is not read."""
    offenders: list[Broken] = field(default_factory=list)
    """The first broken samples."""

    @property
    def samples(self) -> int:
        """Of all data sets."""
        return sum(count.samples for count in self.sources.values())

    @property
    def broken(self) -> int:
        """Samples that training would skip."""
        return sum(self.faults.values())

    def to_json(self) -> dict[str, Any]:
        """Everything, for `json.dumps`."""
        return {"samples": self.samples, "broken": self.broken, **asdict(self)}


def check_entries(
    entries: Iterable[MixtureEntry], media_root: Path | None = None
) -> tuple[MixtureEntry, ...]:
    """Entries as they are checked: each sample once, images from `media_root` if it is given."""
    return tuple(
        replace(entry, weight=1.0, media_root=media_root or entry.media_root) for entry in entries
    )


def check(
    corpus: Corpus,
    training_set: TrainingSet | None = None,
    *,
    workers: int = 0,
    show: int = 20,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> CheckReport:
    """Read and decode every sample of a corpus.

    Args:
        corpus: of `check_entries`.
        training_set: of the same corpus; without it lengths in tokens are not looked at.
        workers: processes that read and decode; 0 is this one.
        show: broken samples that are listed.
        progress: called with the stage, the samples done and all of them.
    """
    report = CheckReport(ignored=corpus.ignored, kinds=corpus.kinds())
    names: set[tuple[str, str]] = set()
    contents: set[str] = set()
    samples = _Inspection(corpus, training_set)
    loader = DataLoader(samples, batch_size=16, num_workers=workers, collate_fn=list)
    for batch in loader:
        for finding in batch:
            _count(report, finding, names, contents, show)
        progress("checking", report.samples, len(corpus))
    return report


def _count(
    report: CheckReport,
    finding: Finding,
    names: set[tuple[str, str]],
    contents: set[str],
    show: int,
) -> None:
    count = report.sources.setdefault(finding.source, SourceCount())
    count.samples += 1
    count.images += finding.images
    count.videos += finding.videos
    count.text_only += finding.broken is None and not finding.images and not finding.videos
    report.cut += finding.cut > 0
    report.longest = max(report.longest, finding.tokens + finding.cut)
    name = (finding.source, finding.name)
    report.same_id += name in names
    names.add(name)
    if finding.digest:
        report.same_content += finding.digest in contents
        contents.add(finding.digest)
    if finding.broken is not None:
        count.broken += 1
        fault = finding.broken.fault
        report.faults[fault] = report.faults.get(fault, 0) + 1
        if len(report.offenders) < show:
            report.offenders.append(finding.broken)


class _Inspection(Dataset[Finding]):
    def __init__(self, corpus: Corpus, training_set: TrainingSet | None) -> None:
        self._corpus = corpus
        self._training_set = training_set

    def __len__(self) -> int:
        return len(self._corpus)

    def __getitem__(self, index: int) -> Finding:
        try:
            record = self._corpus[index]
        except SampleError as error:
            broken = self._corpus.broken(index, error)
            return Finding(broken.name, broken.source, broken=broken)
        finding = Finding(
            record.name,
            record.source,
            images=len(record.images),
            videos=int(record.video is not None),
            digest=_digest(record),
        )
        if self._training_set is None:
            try:
                _decode(record)
            except SampleError as error:
                broken = Broken(record.name, record.source, str(error), error.fault)
                return replace(finding, broken=broken)
            return finding
        encoded = self._training_set[index]
        if isinstance(encoded, Broken):
            return replace(finding, broken=encoded)
        return replace(finding, tokens=len(encoded.ids), cut=encoded.cut)


def _decode(record: Record) -> None:
    """Decode everything once.

    Raises:
        SampleError: something cannot be, or the marks do not fit.
    """
    visual_marks(record)
    for image in record.images:
        with image_faults():
            load_image(image)
    if record.video is not None:
        read_frames(record.video, max_frames=32, fps=1, prepare=lambda frame: None)


def _digest(record: Record) -> str:
    """Of the contents; "" where a file is not there."""
    found = hashlib.sha256(repr((record.system, record.turns)).encode())
    try:
        for source in [*record.images, *_files(record.video)]:
            with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
    except (OSError, ValueError):  # not there, or a name that no file can have
        return ""
    return found.hexdigest()


def _files(video: Path | None) -> Sequence[Path]:
    if video is None or not video.is_dir():
        return [] if video is None else [video]
    return sorted(path for path in video.iterdir() if path.suffix.lower() in FRAME_SUFFIXES)


__all__ = ["CheckReport", "Finding", "SourceCount", "check", "check_entries"]
