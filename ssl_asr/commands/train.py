"""``ssl-asr train``: fine-tune a pretrained speech model and report its WER."""

from pathlib import Path
from typing import TYPE_CHECKING

from ssl_asr.config.interruption import current
from ssl_asr.config.schemas import TrainConfig

if TYPE_CHECKING:
    from rich.console import Console

    from ssl_asr.build.training import TrainingRun


def train(config: TrainConfig, folder: Path) -> float | None:  # noqa: ARG001
    """Train, test, and return the best dev score, which sweeps compare."""
    from ssl_asr.build.training import build_training, write_beginning
    from ssl_asr.config.options import plain
    from ssl_asr.console import hush, make_console
    from ssl_asr.data.text import get_normalizers
    from ssl_asr.errors import raise_all
    from ssl_asr.inference.testing import transcribe_tested
    from ssl_asr.metrics.evaluation import report
    from ssl_asr.metrics.provenance import Clock
    from ssl_asr.training.checkpoint_files import checkpoint_to_resume
    from ssl_asr.training.checkpointing import best_score
    from ssl_asr.training.csv_log import keep_metrics
    from ssl_asr.training.loggers import finish_run
    from ssl_asr.training.resuming import check_exact, check_length, check_resumable, check_same_settings
    from ssl_asr.training.trainer import check_trained, is_first_process

    hush()
    clock = Clock()
    run_dir, first = Path(config.run_dir), is_first_process()
    console = make_console() if config.verbose and first else None
    # A development run changes no file of an earlier run in the same folder.
    writes = first and config.trainer.fast_dev_run is False
    resumed = checkpoint_to_resume(config.resume, run_dir)
    if resumed is not None:
        check_same_settings(resumed.checkpoint, plain(config))
        check_length(resumed.checkpoint, max_epochs=config.trainer.max_epochs, max_steps=config.trainer.max_steps)
    run = build_training(config, run_dir, console)
    if resumed is not None:
        check_resumable(resumed.checkpoint, run.module)
        if first:
            check_exact(resumed.checkpoint, plain(config), train=run.data.train_kept, ranks=run.trainer.world_size)
    if writes:
        write_beginning(run, run_dir, resumed=resumed is not None)
        keep_metrics(run_dir, 0 if resumed is None else resumed.updates)
    if console is not None:
        _print_overview(run, console)
    failed = True
    try:
        with current().deferred():
            run.trainer.fit(run.module, datamodule=run.data, ckpt_path=None if resumed is None else resumed.path)
            check_trained(run.trainer)
            tested = transcribe_tested(run, run_dir)
        if tested.predictions and run.trainer.is_global_zero and writes:
            report(
                tested.predictions,
                tested.skips,
                normalizers=get_normalizers(config.normalizers),
                folder=run_dir,
                console=console,
                samples=config.samples,
                clock=clock,
            )
        raise_all(tested.refused)
        failed = False
    finally:
        run.data.print_notices()
        if first:
            run.module.skips.print_totals()
        finish_run(config.logger, failed=failed)
    return best_score(run.trainer)


def _print_overview(run: "TrainingRun", console: "Console") -> None:
    """What trains at which learning rate, and how full the batches are."""
    from ssl_asr.training.callbacks import print_groups

    print_groups(run.module.group_table(), type(run.config.freeze_policy).__name__, console)
    fill, padding = run.data.batching()
    console.print(f"batches: {100 * fill:.1f} % of the budget filled, {100 * padding:.1f} % padding")
