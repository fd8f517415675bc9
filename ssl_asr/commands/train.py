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
    from ssl_asr.build.start import start_run
    from ssl_asr.build.summary import print_end
    from ssl_asr.console import hush, make_console
    from ssl_asr.data.text import get_normalizers
    from ssl_asr.errors import raise_all
    from ssl_asr.inference.testing import transcribe_tested
    from ssl_asr.metrics.evaluation import report
    from ssl_asr.metrics.provenance import Clock
    from ssl_asr.training.checkpointing import best_score
    from ssl_asr.training.loggers import finish_run
    from ssl_asr.training.media import log_results
    from ssl_asr.training.trainer import check_trained, is_first_process

    hush()
    clock = Clock()
    run_dir, first = Path(config.run_dir), is_first_process()
    console = make_console() if config.verbose and first else None
    run, checkpoint = start_run(config, run_dir, console)
    if console is not None:
        _print_overview(run, run_dir, checkpoint, console)
    failed, evaluations = True, {}
    try:
        with current().deferred():
            run.trainer.fit(run.module, datamodule=run.data, ckpt_path=checkpoint)
            check_trained(run.trainer)
            tested = transcribe_tested(run, run_dir)
        # A development run changes no file of an earlier run in the same folder.
        if tested.predictions and run.trainer.is_global_zero and config.trainer.fast_dev_run is False:
            tested.batching = run.data.batching(run.trainer.world_size)
            evaluations = report(
                tested.predictions,
                tested.skips,
                normalizers=get_normalizers(config.normalizers),
                folder=run_dir,
                console=console,
                samples=config.samples,
                clock=clock,
                about=tested.about(config.backbone.source),
            )
            log_results(run.trainer, evaluations, run_dir)
        if console is not None and config.trainer.fast_dev_run is False:
            print_end(run, run_dir, evaluations, clock, console)
        raise_all(tested.refused)
        failed = False
    finally:
        run.data.print_notices()
        if first:
            run.module.skips.print_totals()
        finish_run(config.logger, failed=failed)
    return best_score(run.trainer)


def _print_overview(run: "TrainingRun", folder: Path, checkpoint: Path | None, console: "Console") -> None:
    """What trains at which learning rate, how full the batches are, and the run as a whole."""
    from ssl_asr.build.summary import print_start
    from ssl_asr.data.batching import print_batching
    from ssl_asr.training.callbacks import print_groups

    print_groups(run.module.group_table(), type(run.config.freeze_policy).__name__, console)
    print_batching(run.data.batching(run.trainer.world_size), console)
    print_start(run, folder, checkpoint, console)
