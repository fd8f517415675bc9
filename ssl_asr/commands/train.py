"""``ssl-asr train``: fine-tune a pretrained speech model and report an honest WER."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_asr.metrics.report import Prediction
    from ssl_asr.types import Skip


def train(config: dict[str, Any], folder: Path) -> float | None:
    """Train as the resolved config says; returns the best dev score, for sweeps."""
    from ssl_asr.build.assembly import build_training, describe_model, write_beginning
    from ssl_asr.console import hush, make_console
    from ssl_asr.data.text import get_normalizers
    from ssl_asr.inference.batches import run_test
    from ssl_asr.metrics.evaluation import report
    from ssl_asr.training.averaging import final_checkpoints
    from ssl_asr.training.callbacks import print_groups
    from ssl_asr.training.checkpointing import check_resumable, read_checkpoint
    from ssl_asr.training.trainer import is_first_process

    hush()
    folder, first = Path(config["run_dir"]), is_first_process()
    console = make_console() if config["verbose"] and first else None
    resumed = None if config["resume"] is None else read_checkpoint(Path(config["resume"]))
    run = build_training(config, folder, console)
    if resumed is not None:
        check_resumable(resumed, run.module, describe_model(run.module))
    if first:
        write_beginning(run, folder)
    if console is not None:
        fill, padding = run.data.batching()
        policy = config["freeze_policy"]["_target_"].rpartition(".")[2]
        print_groups(run.module.group_table(), policy, console)
        console.print(f"batches: {100 * fill:.1f} % of the budget filled, {100 * padding:.1f} % padding")
    failed = True
    try:
        run.trainer.fit(run.module, datamodule=run.data, ckpt_path=config["resume"])
        predictions: dict[str, list[Prediction]] = {}
        test_skips: dict[str, list[Skip]] = {}
        for suffix, path in final_checkpoints(run.trainer, folder / "checkpoints").items():
            if path is not None:
                checkpoint = read_checkpoint(path)
                run.module.load_state_dict(run.module.with_frozen(checkpoint["state_dict"], checkpoint))
            if run.data.test_names:
                rows, skipped = run_test(run.trainer, run.module, run.data)
                predictions |= {f"{name}{suffix}": found for name, found in rows.items()}
                test_skips |= {f"{name}{suffix}": found for name, found in skipped.items()}
        if predictions and run.trainer.is_global_zero:
            report(
                predictions,
                test_skips,
                normalizers=get_normalizers(config["normalizers"]),
                folder=folder,
                console=console,
                samples=config["samples"],
            )
        failed = False
    finally:
        if "wandb" in config["logger"]["_target_"].lower():
            from ssl_asr.training.wandb import finish

            finish(failed=failed)
    return best_dev_score(run.trainer)


def best_dev_score(trainer: Any) -> float | None:
    """The monitored metric of ``best.ckpt``; None where there was no dev set."""
    scores = [c.best_model_score for c in trainer.checkpoint_callbacks if c.monitor and c.best_model_score is not None]
    return float(scores[0]) if scores else None
