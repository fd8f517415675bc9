"""What a training run is before its first update, and what it came to at its end, each as one table."""

import math
import shlex
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssl_asr.build.plan import MemoryEstimate, step_memory
from ssl_asr.build.training import TrainingRun
from ssl_asr.config.run_folder import AUTO
from ssl_asr.config.schemas import TrainConfig
from ssl_asr.console import TitledTable
from ssl_asr.data.filters import Selection
from ssl_asr.metrics.evaluation import Evaluation
from ssl_asr.metrics.provenance import Clock
from ssl_asr.training.callbacks import speed_figures
from ssl_asr.training.checkpointing import best_checkpoint
from ssl_asr.training.sides import GroupRow
from ssl_asr.training.step_memory import gradients_bytes, weights_bytes
from ssl_asr.training.trainer import BF16_WEIGHTS, FSDP2

_GB, _MILLION, _HOUR_S = 1e9, 1e6, 3600


def print_start(run: TrainingRun, folder: Path, checkpoint: Path | None, console: Console) -> None:
    """Print what a run trains, on what, where it writes, and the checkpoint that it continues from."""
    config, options = run.config, run.config.trainer
    rows = run.module.group_table()
    table = _table("Run")
    _row(table, "model", f"{config.backbone.source}, {run.module.task_name}, {_sizes(rows)}")
    for selection in run.data.selections.values():
        _row(table, selection.name, _split(selection))
    batches = run.data.batching(run.trainer.world_size)["train"].batches // run.trainer.world_size
    _row(table, "updates", _updates(run.module.total_updates, batches, config))
    ranks = f", {run.trainer.world_size} ranks" if run.trainer.world_size > 1 else ""
    _row(table, "device", f"{run.trainer.strategy.root_device}, {options.precision}{ranks}")
    _row(table, "memory", _memory(run))
    writes = "nothing (fast_dev_run)" if options.fast_dev_run is not False else str(folder)
    _row(table, "writes to", writes)
    if checkpoint is not None:
        _row(table, "continues from", str(checkpoint))
    elif config.resume == AUTO:
        _row(table, "continues from", "nothing: no checkpoint is saved yet")
    console.print(table)


def _updates(total: int, batches: int, config: TrainConfig) -> str:
    """The number of updates of a run, and the batches of its first epoch."""
    options = config.trainer
    is_short = options.fast_dev_run is not False
    epochs = 1 if is_short else options.max_epochs
    most = "at most " if options.max_steps >= 0 and not is_short else ""
    text = f"{total:,} in {most}{epochs} epoch{'' if epochs == 1 else 's'}{' (fast_dev_run)' if is_short else ''}"
    used, per_update = next(iter(options.train_batches([batches]))), options.accumulate_grad_batches
    has = f"has {batches:,}" if used == batches else f"uses {used:,} of {batches:,}"
    text += f". The first epoch {has} batches of up to {config.data.batch_s:g} s"
    text += f", {per_update} in an update" if per_update > 1 else ""
    if not most and total != epochs * math.ceil(used / per_update):
        text += ". Each epoch forms its own batches, so their number may differ"
    return text


def _table(title: str) -> Table:
    table = TitledTable(title, show_header=False)
    table.add_column("what", no_wrap=True)
    table.add_column("value", overflow="fold")
    return table


def _row(table: Table, what: str, value: str) -> None:
    # Brackets in paths are not markup.
    table.add_row(what, Text(value))


def _sizes(rows: list[GroupRow]) -> str:
    total, trains = sum(row.total for row in rows), sum(row.trainable for row in rows)
    return f"{_count(total)} parameters, {_count(trains)} train"


def _count(number: int) -> str:
    return f"{number / _MILLION:,.1f} M" if number >= _MILLION else f"{number:,}"


def _split(selection: Selection) -> str:
    dropped = f", {len(selection.skips):,} dropped" if selection.skips else ""
    return f"{len(selection.kept):,} utterances, {selection.kept.total_s / _HOUR_S:.2f} h{dropped}"


def _memory(run: TrainingRun) -> str:
    """The estimate of `ssl_asr.build.plan`. Sizes of weights and gradients if it does not hold for the run."""
    device, options = run.trainer.strategy.root_device, run.config.trainer
    is_plain = (
        options.compile is None
        and options.strategy != FSDP2
        and options.precision != BF16_WEIGHTS
        and not run.module.caches_states
    )
    if not is_plain or device.type not in ("cpu", "cuda"):
        sizes = {"weights": weights_bytes(run.module), "gradients": gradients_bytes(run.module)}
        known = ", ".join(f"{name} {size / _GB:.2f} GB" for name, size in sizes.items())
        # `ssl-asr doctor` refuses weights in bfloat16.
        how = "" if options.precision == BF16_WEIGHTS else ": ssl-asr doctor measures it"
        return f"{known}; more in training{how}"
    one = MemoryEstimate.of(run, step_memory(run), run.trainer.world_size)
    sizes = {"weights": one.parameters, "gradients": one.gradients, "optimizers": one.optimizer}
    sizes |= {"largest batch": one.activations}
    parts = ", ".join(f"{name} {size / _GB:.2f}" for name, size in sizes.items())
    return f"about {one.peak / _GB:.2f} GB at its peak ({parts})"


def print_end(
    run: TrainingRun, folder: Path, evaluations: Mapping[str, Evaluation], clock: Clock, console: Console
) -> None:
    """Print the scores of a run, its best checkpoint, and the commands that may come next."""
    table = _table(f"Finished in {_duration(clock.record()['seconds'])}")
    for split, evaluation in evaluations.items():
        score = evaluation.scores[0]
        interval = f"{100 * score.wer_low:.2f} - {100 * score.wer_high:.2f}"
        _row(table, f"{split} WER", f"{100 * score.wer:.2f} % ({interval}), {score.normalizer}")
    _row(table, "speed, last epoch", _speed(run))
    best = best_checkpoint(run.trainer)
    name = "best" if best is not None and best.best_model_path else "last"
    _row(table, f"{name} checkpoint", str(folder / "checkpoints" / f"{name}.ckpt"))
    console.print(table)
    console.print("Next:")
    for command in next_commands(run, folder):
        # Lines that wrap by themselves could not be copied.
        console.print(f"  {command}", soft_wrap=True, markup=False, highlight=False)


def _speed(run: TrainingRun) -> str:
    """What the last epoch logged of speed and memory."""
    found = speed_figures(run.trainer)
    formats = {
        "train/audio_s_per_s": "{:.1f} s of audio a second",
        "train/mfu": "MFU {:.1%}",
        "train/loader_wait": "{:.1%} of the time waiting for the loader",
        "train/peak_gb": "{:.2f} GB at the peak",
    }
    return ", ".join(form.format(found[name]) for name, form in formats.items() if name in found) or "not measured"


def next_commands(run: TrainingRun, folder: Path) -> list[str]:
    """Commands that evaluate, transcribe with, and export the model of a run."""
    data = run.config.data
    known = [*data.test.values(), *([data.dev] if data.dev is not None else []), "test.jsonl"]
    model = f"model={folder}"
    words = [
        ["evaluate", model, f"manifest={known[0]}"],
        ["transcribe", "recording.wav", model],
        ["export", model, "to=transformers"],
    ]
    return [shlex.join(["ssl-asr", *command]) for command in words]


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), _HOUR_S)
    parts = [f"{hours} h"] if hours else []
    return " ".join([*parts, *([f"{rest // 60} min"] if seconds >= 60 else []), *([] if hours else [f"{rest % 60} s"])])
