"""Run a stage: a checkpoint and data in, a checkpoint with its log out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from laco_deploy.model import LacoConfig, LacoForConditionalGeneration, LacoProcessor
from laco_deploy.model.checkpoint import (
    Checkpoint,
    check_replaceable,
    load_checkpoint,
    save_checkpoint,
)
from laco_deploy.training.answers import Examiner
from laco_deploy.training.broken_log import BrokenLog
from laco_deploy.training.corpus import ChatOptions, Collator, Corpus, TrainingSet, read_mixture
from laco_deploy.training.pictures import WithPicture
from laco_deploy.training.precision import Precision, resolve_precision
from laco_deploy.training.progress import Progress
from laco_deploy.training.run_files import Entry, read_lines
from laco_deploy.training.run_folder import BROKEN_FILE, LOG_FILE, RunFolder
from laco_deploy.training.stage import Stage
from laco_deploy.training.stage_callbacks import Record, SampleAnswers, StopOnSignal
from laco_deploy.training.stage_trainer import (
    MAY_DIFFER,
    StageTrainer,
    sharded_layers,
    training_arguments,
)
from laco_runtimes.errors import CheckpointError, ConfigError
from laco_runtimes.images import Preprocessing


@dataclass(frozen=True, slots=True, kw_only=True)
class StageJob:
    """A stage with its inputs and its output."""

    stage: Stage
    checkpoint: Path
    """To start from."""
    data: Path
    """A mixture file, a data file or a folder of shards."""
    out: Path
    """Checkpoint folder to write; what is unfinished lies in `<out>.run`."""
    eval_data: Path | None = None
    """Held-out questions."""
    resume: bool = False
    tensorboard: bool = False


@dataclass(frozen=True, slots=True)
class StageResult:
    """How a stage ended."""

    out: Path
    finished: bool
    """False where it was asked to stop; `out` is not written then."""
    step: int
    steps: int
    scores: dict[str, float]
    """Of the held-out questions: `eval_exact_match`, `eval_anls`, ..."""
    broken: int
    """Samples that were skipped."""


def run_stage(
    job: StageJob,
    *,
    progress: Progress | None = None,
    report: Callable[[str], None] = lambda text: None,
) -> StageResult:
    """Train a stage to its end, or until Ctrl-C or SIGTERM asks it to stop.

    In a process group (torchrun, accelerate launch) every process calls it.

    Args:
        job: what to do.
        progress: shows the steps; None is silent.
        report: called on the first process with sentences for the user.

    Raises:
        CheckpointError: no checkpoint, an unfinished run without `resume`, or one that does not fit
            to these settings or data.
        ConfigError: settings that do not go with the model or the number of processes.
        DataError: data that cannot be read, or too many broken samples.
    """
    with _own_accelerate() as processes:
        return _run(job, processes, progress, report if processes.is_main_process else _silent)


def _run(
    job: StageJob, processes: PartialState, progress: Progress | None, say: Callable[[str], None]
) -> StageResult:
    stage, run = job.stage, RunFolder(job.out.absolute())
    stage.accumulation(processes.num_processes)
    if stage.fsdp and processes.num_processes == 1:
        raise ConfigError(
            "there is one process, and so nothing to shard the model over. "
            "Start several with torchrun, or leave --fsdp out."
        )
    if job.resume and run.is_finished(_settings(job), MAY_DIFFER):
        say(f"{job.out} is finished; nothing is left to do.")
        return _finished(job.out)
    check_replaceable(run.out)
    checkpoint = load_checkpoint(job.checkpoint)
    prepare_model(checkpoint, stage)
    config = LacoConfig.from_dict(checkpoint.config.to_dict())  # before the trainer writes into it
    processor = _processor(checkpoint)
    run.check(resume=job.resume)
    processes.wait_for_everyone()  # from here on the first writes what the others have looked at
    precision, warning = resolve_precision(stage.precision)
    if warning:
        say(warning)

    stop = StopOnSignal()
    trainer = _trainer(job, run, checkpoint, processor, precision, processes, stop, progress, say)
    with stop.listening():
        trainer.train(resume_from_checkpoint=job.resume)
    step, steps, broken = trainer.state.global_step, trainer.state.max_steps, trainer.broken.count
    if stop.stopped:
        say(f"stopped after step {step} of {steps}. Go on with the same command and --resume.")
        return StageResult(job.out, False, step, steps, {}, broken)
    scores = _last_scores(trainer)
    weights = trainer.gather_weights()
    if processes.is_main_process:
        _save(run, config, checkpoint.preprocessing, processor, weights)
    processes.wait_for_everyone()
    return StageResult(job.out, True, step, steps, scores, broken)


def _trainer(
    job: StageJob,
    run: RunFolder,
    checkpoint: Checkpoint,
    processor: LacoProcessor,
    precision: Precision,
    processes: PartialState,
    stop: StopOnSignal,
    progress: Progress | None,
    say: Callable[[str], None],
) -> StageTrainer:
    """The trainer with its data and everything that happens beside the steps."""
    stage, pad, first = job.stage, _pad(processor), processes.is_main_process
    corpus = Corpus(read_mixture(job.data), stage.seed)
    samples = TrainingSet(corpus, processor, chat_options(stage))
    examiner = _examiner(job, processor)
    if first:  # only now: nothing is left behind where the data cannot be read
        run.path.mkdir(parents=True, exist_ok=True)
    broken = BrokenLog(run.broken, stage.allowed_broken(len(samples)), is_writer=first)
    answers = SampleAnswers(stage.sample_every)
    callbacks: list[TrainerCallback] = [Record(run, _settings(job), broken), answers, stop]
    if first and progress is not None:
        callbacks.append(progress.trainer_callback())
    if first and job.tensorboard:
        callbacks.append(_tensorboard(run.path))
    trainer = StageTrainer(
        checkpoint.model,
        stage,
        training_arguments(
            stage,
            run.path,
            precision,
            processes=processes.num_processes,
            evaluates=examiner is not None,
            sharded=sharded_layers(checkpoint.model),
        ),
        samples,
        WithPicture.of(checkpoint.config, pad, Collator(pad)),
        broken,
        examiner=examiner,
        sampled=_spread(examiner, stage.sample_count),
        samples_file=run.samples,
        settings={"data": corpus.fingerprint, "precision": precision},
        report=say,
        callbacks=callbacks,
    )
    answers.attach(trainer)
    trainer.remove_callback(PrinterCallback)  # a raw dict per entry; the bar shows the same
    rates = ", ".join(f"{part} {rate:g}" for part, rate in stage.learning_rates.items())
    say(f"{len(samples)} samples, {precision}, {rates}. Logs are in {run.path}")
    return trainer


def prepare_model(checkpoint: Checkpoint, stage: Stage) -> LacoForConditionalGeneration:
    """The model of a checkpoint with the images of a stage, in float32.

    Where the stage wants the learned vector that ends rows and the model has none, it gets one, as
    LLaVA-OneVision does from stage 1.5 on; where the stage wants none, it is taken away. Nothing
    else changes.
    """
    model: LacoForConditionalGeneration = checkpoint.model.float()
    config = checkpoint.config
    config.image_mode = stage.image_mode
    if stage.image_newline and model.model.image_newline is None:
        config.image_newline = True
        width = config.text.hidden_size
        generator = torch.Generator().manual_seed(stage.seed)
        newline = torch.randn(width, generator=generator) / width**0.5
        model.model.image_newline = nn.Parameter(newline)
    elif stage.image_newline is False:
        config.image_newline = False
        model.model.image_newline = None
    return model


def chat_options(stage: Stage, *, clean_mask: bool | None = None) -> ChatOptions:
    """How a stage encodes samples; `clean_mask` other than the stage's for its questions."""
    return ChatOptions(
        style=stage.style,
        clean_mask=stage.clean_mask if clean_mask is None else clean_mask,
        max_length=stage.max_length,
        image_mode=stage.image_mode,
        max_frames=stage.max_frames,
        fps=stage.fps,
    )


def _settings(job: StageJob) -> str:
    """The resolved stage as YAML, its inputs in comments: `load_stage` reads it again."""
    inputs = {"checkpoint": job.checkpoint, "data": job.data, "held-out data": job.eval_data}
    comments = "".join(f"# {name}: {path}\n" for name, path in inputs.items() if path)
    return comments + job.stage.to_yaml()


def _processor(checkpoint: Checkpoint) -> LacoProcessor:
    loaded: LacoProcessor = LacoProcessor.from_pretrained(checkpoint.root, local_files_only=True)
    return LacoProcessor.from_config(checkpoint.config, loaded.tokenizer, checkpoint.preprocessing)


def _pad(processor: LacoProcessor) -> int:
    return int(processor.tokenizer.pad_token_id)


def _examiner(job: StageJob, processor: LacoProcessor) -> Examiner | None:
    if job.eval_data is None:
        return None
    stage = job.stage
    corpus = Corpus(read_mixture(job.eval_data), stage.seed)
    return Examiner(
        TrainingSet(corpus, processor, chat_options(stage, clean_mask=True)),
        cast(PreTrainedTokenizerBase, processor.tokenizer),
        Collator(_pad(processor)),
        max_new_tokens=stage.max_new_tokens,
        batch_size=stage.micro_batch,
        workers=stage.workers,
    )


def _spread(examiner: Examiner | None, count: int) -> list[int]:
    """So many questions, evenly over all."""
    total = 0 if examiner is None else len(examiner)
    count = min(count, total)
    return [number * total // count for number in range(count)]


def _tensorboard(folder: Path) -> TrainerCallback:
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(str(folder / "tensorboard")))


def _last_scores(trainer: StageTrainer) -> dict[str, float]:
    """Scores after the last step; asked now, unless the run has just done so."""
    if scores := _scores(trainer.state.log_history, trainer.state.global_step):
        return scores
    trainer.write_samples()
    return trainer.evaluate()


def _scores(entries: Sequence[Entry], step: int) -> dict[str, float]:
    for entry in entries:
        if entry["step"] == step and "eval_anls" in entry:
            return {name: value for name, value in entry.items() if name.startswith("eval_")}
    return {}


def _save(
    run: RunFolder,
    config: LacoConfig,
    preprocessing: Preprocessing,
    processor: LacoProcessor,
    weights: dict[str, Tensor],
) -> None:
    """Write the checkpoint from a fresh model: that of the trainer may be wrapped or in pieces."""
    with torch.device("meta"):
        model = LacoForConditionalGeneration(config)
    model.tie_weights()
    shared = set(model.state_dict()) - {name for name, _ in model.named_parameters()}
    missing = model.load_state_dict(weights, assign=True, strict=False).missing_keys
    if not set(missing) <= shared:
        raise CheckpointError(f"weights {missing[:3]} are missing after training. Report this.")
    model.tie_weights()
    save_checkpoint(
        run.out,
        model=model,
        tokenizer=cast(PreTrainedTokenizerBase, processor.tokenizer),
        preprocessing=preprocessing,
        extra=run.copy_record,
    )
    run.remove()


def _finished(out: Path) -> StageResult:
    """The result of an earlier run, from the record in its checkpoint."""
    record = RunFolder(out).record
    entries = read_lines(record / LOG_FILE)
    step = int(entries[-1]["step"]) if entries else 0
    broken = len(read_lines(record / BROKEN_FILE))
    return StageResult(out, True, step, step, _scores(entries, step), broken)


@contextmanager
def _own_accelerate() -> Iterator[PartialState]:
    """The process group, without what an earlier stage here left of precision and FSDP.

    accelerate keeps both in global variables and in the environment.
    """
    AcceleratorState._reset_state()
    GradientState._reset_state()
    processes = PartialState(cpu=not torch.cuda.is_available())
    kind, environment = processes.distributed_type, dict(os.environ)
    try:
        yield processes
    finally:
        processes.distributed_type = kind
        for name in [name for name in os.environ if "FSDP" in name]:
            if name not in environment:
                del os.environ[name]


def _silent(text: str) -> None:
    pass


__all__ = ["StageJob", "StageResult", "chat_options", "prepare_model", "run_stage"]
