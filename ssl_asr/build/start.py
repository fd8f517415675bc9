"""The start of a training run: new or resumed, with the files that are known before training."""

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from ssl_asr.build.training import TrainingRun, build_training, write_beginning
from ssl_asr.config.console_log import save_console
from ssl_asr.config.options import plain
from ssl_asr.config.schemas import TrainConfig
from ssl_asr.training.checkpoint_files import KEY, checkpoint_to_resume
from ssl_asr.training.csv_log import keep_metrics
from ssl_asr.training.resuming import check_exact, check_length, check_resumable, check_same_settings, say_if_finished
from ssl_asr.training.trainer import is_first_process


def start_run(config: TrainConfig, folder: Path, console: Console | None) -> tuple[TrainingRun, Path | None]:
    """Build a run, and find the checkpoint that it continues from, or None.

    Args:
        config: The resolved configuration.
        folder: Folder of the run. A development run writes nothing to it.
        console: Where tables are printed; None prints nothing.

    Raises:
        CheckpointError, ConfigError, UserErrors: The checkpoint cannot be read, or is that of another run.
    """
    resumed, first = checkpoint_to_resume(config.resume, folder), is_first_process()
    if resumed is not None:
        if config.data.max_batch_s == "auto":
            budget_s = resumed.checkpoint[KEY]["config"]["data"]["max_batch_s"]
            config = replace(config, data=replace(config.data, max_batch_s=budget_s))
        check_same_settings(resumed.checkpoint, plain(config))
        check_length(resumed.checkpoint, max_epochs=config.trainer.max_epochs, max_steps=config.trainer.max_steps)
    run = build_training(config, folder, console)
    if resumed is not None:
        check_resumable(resumed.checkpoint, run.module)
        train, ranks = run.data.train_kept, run.trainer.world_size
        check_exact(resumed.checkpoint, plain(run.config), train=train, ranks=ranks, first=first)
        if first:
            say_if_finished(resumed.updates, run.module.total_updates, max_steps=config.trainer.max_steps)
    if first and config.trainer.fast_dev_run is False:
        write_beginning(run, folder, resumed=resumed is not None)
        save_console(folder / "train.log")
        keep_metrics(folder, 0 if resumed is None else resumed.updates)
    return run, None if resumed is None else resumed.path
