"""The test of a finished training run."""

from pathlib import Path

from ssl_asr.build.training import TrainingRun
from ssl_asr.inference.batches import Transcripts, transcribe_splits
from ssl_asr.training.averaging import final_checkpoints
from ssl_asr.training.checkpoint_files import read_checkpoint
from ssl_asr.training.parts import load_whole


def transcribe_tested(run: TrainingRun, folder: Path) -> Transcripts:
    """Transcripts of dev and test splits, by the best checkpoint and by the average of the best if there is one.

    Args:
        run: The run after training.
        folder: Folder of the run.
    """
    tested = Transcripts()
    options = run.config.trainer
    # The validation scored the weights of each epoch. The scores of a run are those of the weights that are kept.
    run.data.test_dev = options.limit_val_batches != 0
    for suffix, path in final_checkpoints(run.trainer, folder / "checkpoints").items():
        if path is not None:
            checkpoint = read_checkpoint(path)
            load_whole(run.module, run.module.with_frozen(checkpoint["state_dict"], checkpoint))
        if run.data.test_names and options.limit_test_batches != 0:
            found = transcribe_splits(run.trainer, run.module, run.data)
            for name, skips in found.skips.items():
                late = skips[len(run.data.skips[name]) :]
                run.module.skips.keep(name, late, run.trainer.current_epoch)
            if path is not None:
                found.checkpoints = dict.fromkeys(found.predictions, str(path))
            found.refuse(run.data.manifests, run.config.data.max_skip_fraction, prefix="data.")
            tested.add(found.renamed(suffix))
    return tested
