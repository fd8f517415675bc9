"""Stops training after an update, on all ranks together, when a signal asks for it.

    after an update        save last.ckpt, stop
    after an epoch         stop, last.ckpt is already saved
    during a validation    leave out its remaining batches, save last.ckpt as it is before the validation, stop
    during a test          leave out its remaining batches, stop

A signal may reach one rank only. Ranks tell each other with the counts of an update, and at the end of a validation or
test, where all of them arrive. During validation and test, which have other numbers of batches on other ranks, a rank
leaves a note for the others in torch's store of key and value.
"""

import signal
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from ssl_asr.config.interruption import Interruption
from ssl_asr.training.checkpoint_io import finish_checkpoints
from ssl_asr.training.checkpointing import MovableCheckpoint, ends_epoch
from ssl_asr.training.pending import validation_follows
from ssl_asr.training.updates import UpdateLoop

_NOTE = "ssl_asr/stop"


class StopOnSignal(Callback):
    """Stops a run at the next update after a signal. See the text of the module.

    Args:
        interruption: The signals of this process.
        folder: Folder of the checkpoints, or None to write none.
    """

    def __init__(self, interruption: Interruption, folder: Path | None) -> None:
        self.interruption, self.folder = interruption, folder
        self._cut = False
        self._has_note = False

    @property
    def noted(self) -> int:
        """The signal that this rank has received, or 0."""
        return self.interruption.signal or 0

    # Training --------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let the module's updates ask for the signal."""
        assert isinstance(pl_module, UpdateLoop)
        pl_module.noted_signal = lambda: self.noted

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop after an update, unless a validation follows, which stops at its first batch, or the epoch ends."""
        self.interruption.moved()
        assert isinstance(pl_module, UpdateLoop)
        number = pl_module.agreed_signal
        if number and not validation_follows(trainer) and not ends_epoch(trainer):
            # Lightning logs the metrics of an update after this hook.
            trainer._logger_connector.update_train_step_metrics()
            self._leave(trainer, number, save=True)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop between two epochs. The last checkpoint is written."""
        if trainer.global_step > 0:
            self._agree_and_leave(trainer, save=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop between training and test. The last checkpoint is written."""
        self._agree_and_leave(trainer, save=False)

    # Validation and test ---------------------------------------------------------------------------------------

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Leave out this batch and all others if any rank has received a signal."""
        self.interruption.moved()
        if self._any_rank_is_told():
            self._cut = True
            # Lightning ends the loop, as at the end of a loader.
            raise StopIteration

    on_test_batch_start = on_validation_batch_start

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop if any rank left out batches. The validation is done again when the run is resumed."""
        if not self._any_rank_cut(trainer):
            return
        # A run that has made its last update is not resumed at its last validation.
        save = not trainer.sanity_checking and trainer.global_step != trainer.max_steps
        if save:
            _undo_validation(trainer)
        self._agree_and_leave(trainer, save=save)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop if any rank left out batches."""
        if self._any_rank_cut(trainer):
            self._agree_and_leave(trainer, save=False)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """End the other processes of this machine if this one has an error. They would wait for it."""
        launcher = trainer.strategy.launcher
        if isinstance(exception, Exception) and trainer.global_rank == 0 and launcher is not None:
            launcher.kill(signal.SIGKILL)

    # Agreement -------------------------------------------------------------------------------------------------

    def _any_rank_is_told(self) -> bool:
        if not torch.distributed.is_initialized():
            return self.noted > 0
        store = torch.distributed.distributed_c10d._get_default_store()
        if self.noted and not self._has_note:
            store.set(_NOTE, str(self.noted))
            self._has_note = True
        return self.noted > 0 or bool(store.check([_NOTE]))

    def _any_rank_cut(self, trainer: L.Trainer) -> bool:
        return largest_over_ranks(trainer, int(self._cut)) > 0

    def _agree_and_leave(self, trainer: L.Trainer, *, save: bool) -> None:
        number = largest_over_ranks(trainer, self.noted)
        if number:
            self._leave(trainer, number, save=save)

    def _leave(self, trainer: L.Trainer, number: int, *, save: bool) -> NoReturn:
        with self.interruption.unlimited():
            if save and self.folder is not None:
                trainer.save_checkpoint(self.folder / "last.ckpt")
            # All ranks wait, because a launcher ends all processes when the first one ends.
            finish_checkpoints(trainer)
        environment = getattr(trainer.strategy, "cluster_environment", None)
        started_by_lightning = environment is not None and not environment.creates_processes_externally
        # If a process that Lightning started does not return 0, Lightning kills the first one.
        self.interruption.leave(number, 0 if started_by_lightning and trainer.local_rank > 0 else None)


class LastCheckpoint(MovableCheckpoint):
    """Saves ``last.ckpt`` at the end of each epoch, and every few updates within an epoch.

    A checkpoint is saved after what follows its update. If it were saved before a validation, Lightning would leave out
    the validation when it resumes. If it were saved before the end of an epoch, Lightning would leave it out, or repeat
    it without the metrics of the validation.

        update                                     save
        update, validation                         save after the validation
        update, (validation,) end of the epoch     save at the end of the epoch

    This callback follows those of the best checkpoints, so that ``last.ckpt`` has their scores of this validation.

    Args:
        folder: Folder of the checkpoint.
        every_n_updates: Number of updates between checkpoints within an epoch, or None to save only at the end of each
            epoch.

    Attributes:
        every_n_updates: See above.
    """

    def __init__(self, folder: Path, *, every_n_updates: int | None) -> None:
        super().__init__(
            dirpath=folder,
            filename="last",
            save_top_k=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
            auto_insert_metric_name=False,
        )
        self.every_n_updates = every_n_updates
        self._due = self._has_saved = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the next epoch if the run is resumed at the end of one."""
        super().on_train_start(trainer, pl_module)
        loop = trainer.fit_loop
        if loop.restarted_on_epoch_end and loop.epoch_loop._num_ready_batches_reached():
            # With max_steps, Lightning would call the hooks of the end of the epoch again.
            loop.epoch_progress.increment_completed()
            loop.reset_restart_stage()
            for each in (loop, loop.epoch_loop):
                each.on_iteration_done()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Write the metrics of the update of the checkpoint, which Lightning logs after it is saved."""
        if self._has_saved:
            self._has_saved = False
            for logger in trainer.loggers:
                logger.save()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, or note that a checkpoint is due after the validation."""
        due = self.every_n_updates is not None and trainer.global_step % self.every_n_updates == 0
        self._due = due and validation_follows(trainer)
        if due and not self._due and not ends_epoch(trainer):
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save if a checkpoint is due, unless the epoch ends here."""
        if self._due and not ends_epoch(trainer):
            self._save(trainer)
        self._due = False

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save, and note that metrics follow."""
        super().on_train_epoch_end(trainer, pl_module)
        self._has_saved = True

    def _save(self, trainer: L.Trainer) -> None:
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
            self._has_saved = True


def _undo_validation(trainer: L.Trainer) -> None:
    """Set the counters of a validation so that a checkpoint says that it has to be done."""
    progress: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    progress.current.reset()
    progress.total.reset()
    # What Lightning takes for a validation that was stopped in a batch.
    progress.total.ready = progress.total.started = 1


def largest_over_ranks(trainer: L.Trainer, number: int) -> int:
    """The largest of the numbers of all ranks."""
    if trainer.world_size == 1:
        return number
    largest = torch.tensor(number, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
    return int(largest)
