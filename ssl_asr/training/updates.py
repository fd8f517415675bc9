"""Updates of two optimizers, equal to a hand-written loop.

One update covers a window of ``accumulate`` batches on every rank:

    for batch in window:                 grad += d(sum of losses / 64)          DDP synchronizes only the last one
    count  = number of tokens (or utterances) in the window, summed over ranks
    grad  *= 64 * world_size / count                                            mean over the whole window
    norm   = global norm over the parameters of both optimizers
    grad  *= min(1, clip_norm / norm)                                           one clip over everything
    step both optimizers, update the loss scale once, step both schedulers      global_step += 1

DDP averages gradients over ranks, hence the factor ``world_size``. The constant 64 keeps summed losses in the range
of fp16 and cancels in the mean. If ``norm`` is not finite, no optimizer steps on any rank and the update is counted.
With fp16, gradients also overflow while the scaler searches its scale, as it does at the start. If all losses are
finite, the update belongs to this search, which has a limit of its own. If ``count`` is 0, because every utterance has
weight 0 or none could be read, there is no mean and no update. On a GPU, see also `ssl_asr.training.pending`.
"""

import math
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from ssl_asr.data.dataset import silence
from ssl_asr.decoding.host_copy import HostCopy
from ssl_asr.errors import TrainingError
from ssl_asr.models.encoder import EncoderOutput, SpeechEncoder
from ssl_asr.models.freezing import Progress
from ssl_asr.training.masters import MasterWeights
from ssl_asr.training.optimizers import parameters_of
from ssl_asr.training.parts import is_sharded, own_part, whole
from ssl_asr.training.pending import (
    Answer,
    Part,
    Pending,
    count_matters,
    device_can_decide,
    factor_on_device,
    not_finite,
    take_back,
    unless,
)
from ssl_asr.training.schedulers import MetricScheduler, UpdateScheduler
from ssl_asr.training.sides import GroupRow, OptimConfig, Sides
from ssl_asr.training.skips import LateSkips
from ssl_asr.training.step_figures import StepFigures
from ssl_asr.types import Batch, on_device

# Divides summed losses before backward, so that fp16 gradients stay in range. The mean multiplies it out again.
_LOSS_DIVISOR = 64.0
# The search of a loss scale for fp16 starts at 2**16. Gradients that overflow at this scale are not the scale's fault.
_SMALLEST_SCALE = 2.0**-16
# Signals that ranks tell each other, the more particular one first.
_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Loss:
    """Summed loss of a batch. An update divides the sum of ``total`` by the sum of ``count`` over window and ranks.

    Attributes:
        total: Scalar, sum of the losses.
        count: Scalar, number of tokens (seq2seq) or sum of the utterances' weights (CTC).
    """

    total: Tensor
    count: Tensor


class UpdateLoop(L.LightningModule):
    """A LightningModule that updates two optimizers by manual optimization. A subclass defines `loss`.

    Args:
        encoder: The pretrained encoder.
        sides: Layer groups of the encoder and of the rest, and the freeze policy.
        optim: How updates are made, or None for a module that only transcribes.

    Attributes:
        noted_signal: Returns the number of the signal that this process has received, or 0.
        agreed_signal: The signal that any rank had received at the last update, or 0. Equal on all ranks.
        masters: Float32 masters of the weights during training with weights in bfloat16, or None.
    """

    def __init__(self, *, encoder: SpeechEncoder, sides: Sides, optim: OptimConfig | None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.sides, self.optim = sides, optim
        self.nonfinite_updates = 0
        self.skips = LateSkips()
        self._pretrained = (encoder,)  # in a tuple, so that only the subclass registers the encoder
        self._total_updates = 0
        self.noted_signal: Callable[[], int] = lambda: 0
        self.agreed_signal = 0
        self._nonfinite_in_a_row = self._overflows_in_a_row = 0
        self._window: list[Part] = []
        self._pending: Pending | None = None
        self._device_decides = False
        self._figures = StepFigures()
        self._schedulers: list[UpdateScheduler | MetricScheduler] = []
        self.masters: MasterWeights | None = None

    def loss(self, batch: Batch, out: EncoderOutput | None = None) -> Loss:
        """The summed loss of a batch, and its count.

        Args:
            batch: Utterances with targets.
            out: The encoder's output for the batch if it is already computed.
        """
        raise NotImplementedError

    def loss_parts(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """``total`` and ``count`` of `loss`. The forward pass of training, which strategies may wrap."""
        loss = self.loss(batch)
        return loss.total, loss.count

    @property
    def loss_follows_updates(self) -> bool:
        """Whether the loss depends on the number of updates that were made."""
        return False

    @property
    def speech_encoder(self) -> SpeechEncoder:
        """The pretrained encoder."""
        return self._pretrained[0]

    def set_total_updates(self, total_updates: int) -> None:
        """Set the length of the run in updates, which learning-rate schedules need."""
        self._total_updates = total_updates

    @property
    def total_updates(self) -> int:
        """The length of the run in updates."""
        return self._total_updates

    def group_table(self) -> list[GroupRow]:
        """What trains: one row for each layer group."""
        return self.sides.table(self.optim)

    # Modes and thawing ---------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> "UpdateLoop":
        """Set train mode on all modules except frozen modules, which stay in eval mode."""
        super().train(mode)
        self.sides.freeze_modes()
        return self

    def on_fit_start(self) -> None:
        """Cast the weights if they are in bfloat16. A checkpoint's weights are loaded before, its optimizers after."""
        if self.optim is not None and self.optim.bf16_weights:
            self.masters = MasterWeights(self, self._bare_optimizers())

    def on_fit_end(self) -> None:
        """Free the masters. The weights stay in bfloat16."""
        self.masters = None

    def on_train_start(self) -> None:
        """Set modes before the first batch. After a validation, Lightning restores the modes from before it.

        A run that is resumed with another length follows its new schedules from the first update on.
        """
        for scheduler in self._schedulers:
            if isinstance(scheduler, UpdateScheduler):
                scheduler.follow()
        self.train()
        self._thaw()
        self._pending = None
        self._device_decides = (
            self._scaler is None
            and not self.sides.policy.thaws
            and not self.loss_follows_updates
            and device_can_decide(self.trainer, self._bare_optimizers(), self._schedulers)
        )

    def _thaw(self) -> None:
        progress = Progress(self.trainer.global_step, self.trainer.current_epoch)
        thawed = self.sides.thaw(progress)
        if thawed is None:
            return
        self.train()
        if thawed:
            self.print(f"update {progress.update}: {', '.join(thawed)} thawed")

    # Optimizers ------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> tuple[list[Optimizer], list[dict[str, Any]]]:  # type: ignore[override]
        """Two optimizers and two schedulers; a side with nothing to train has neither."""
        assert self.optim is not None
        optimizers, configs = [], []
        self._schedulers = []
        for side, groups in self.sides.groups():
            if not any(p.requires_grad for group in groups for p in group.parameters()):
                continue
            optimizer = self.optim.optimizers[side].build(groups)
            scheduler = self.optim.schedulers[side].build(optimizer, self.total_updates)
            optimizers.append(optimizer)
            self._schedulers.append(scheduler)
            config: dict[str, Any] = {"scheduler": scheduler.scheduler, "name": f"lr/{side}"}
            if isinstance(scheduler, MetricScheduler):
                config |= {"monitor": scheduler.monitor, "reduce_on_plateau": True}
            configs.append(config)
        return optimizers, configs

    def _wrapped_optimizers(self) -> list[Any]:
        """Lightning's wrappers, which count updates."""
        wrapped = self.optimizers()
        return list(wrapped) if isinstance(wrapped, list) else [wrapped]

    def _bare_optimizers(self) -> list[Optimizer]:
        return [wrapper.optimizer for wrapper in self._wrapped_optimizers()]

    def _optimized(self) -> Iterator[nn.Parameter]:
        return chain(*map(parameters_of, self._bare_optimizers()))

    @property
    def _scaler(self) -> GradScaler | None:
        scaler: GradScaler | None = getattr(self.trainer.precision_plugin, "scaler", None)
        return scaler

    # The training step -----------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Add the gradients of a batch; at the end of a window, make one update."""
        assert self.optim is not None
        if self.sides.policy.thaws and not self._window:
            self._thaw()
        self._figures.begin(self.trainer)
        loss = Loss(*self.loss_parts(batch)) if len(batch) else self._empty_loss()
        ends_window = (batch_idx + 1) % self.optim.accumulate == 0 or self.trainer.is_last_batch
        with nullcontext() if ends_window else self.without_sync():
            self.manual_backward(loss.total / _LOSS_DIVISOR)
        self._window.append(Part(loss.count.detach(), loss.total.detach(), batch.ids))
        self.skips.add("train", batch.skipped)
        if self._figures.may_be_logged:
            if any(utterance.weight > 0 for utterance in batch.utterances):
                self.log_train("train/loss", loss.total.detach() / loss.count.detach(), len(batch))
            masked_share = self.speech_encoder.masked_share
            if len(batch) and masked_share is not None:
                self.log_train("train/masked_share", torch.tensor(masked_share), len(batch))
        if ends_window:
            self._update()
        self._figures.log(self)

    def _empty_loss(self) -> Loss:
        """A zero loss over all parameters, for a batch without readable audio. DDP needs backward on every rank.

        With sharded parameters, layers gather them together with the other ranks, so silence is computed.
        """
        if any(is_sharded(p) for p in self._optimized()):
            self.eval()
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            total, count = self.loss_parts(silence(data.train_kept[0], data.tokenizer).to(self.device))
            self.train()
            return Loss(total * 0.0, count.to(self.device) * 0.0)
        total = sum((p.sum() * 0.0 for p in self._optimized()), torch.zeros((), device=self.device))
        return Loss(total, torch.zeros((), device=self.device))

    def without_sync(self) -> AbstractContextManager[None]:
        """Ranks do not average the gradients of this block."""
        model: Any = self.trainer.strategy.model
        context: AbstractContextManager[None] = model.no_sync() if hasattr(model, "no_sync") else nullcontext()
        return context

    def _update(self) -> None:
        """One update of both optimizers; see the module docstring."""
        assert self.optim is not None
        self._settle()
        window, self._window = self._window, []
        optimizers, scaler = self._bare_optimizers(), self._scaler
        self._prepare_gradients(optimizers, scaler)
        parameters = [parameters_of(optimizer) for optimizer in optimizers]
        own = [[p.grad for p in side if p.grad is not None] for side in parameters]
        norms = [whole(nn.utils.get_total_norm(side)).to(self.device) for side in own]
        count, shared = self._shared(torch.stack([part.count for part in window]).sum().float())
        factor, failed = factor_on_device(count, norms, _LOSS_DIVISOR * self.trainer.world_size, self.optim.clip_norm)
        rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
        # One transfer from the device for all questions.
        update = Pending(HostCopy.of(torch.stack([failed, count, *norms, *shared])), window, rates)
        answer = None if self._device_decides else self._read(update)
        if answer is None or not answer.failed:
            # Mean and clip in one pass over the gradients.
            torch._foreach_mul_([own_part(gradient) for gradient in chain(*own)], factor)
            with unless(failed, optimizers) if answer is None else nullcontext():
                self._step(optimizers, scaler)
        elif scaler is not None:
            # Ends what `unscale_` began. If it has recorded an overflow, this halves the loss scale.
            scaler.update()
        for parameter in chain(*parameters):
            parameter.grad = None
        if answer is None:
            self._pending = update
            if self.agreed_signal or self._figures.may_be_logged or count_matters(self.trainer):
                self._settle(logs=True)
        else:
            self._note(update, answer, scaler, logs=True)

    def _settle(self, *, logs: bool = False) -> None:
        """Learn the outcome of an update that the device has decided."""
        update, self._pending = self._pending, None
        if update is None:
            return
        answer = self._read(update)
        if answer.failed:
            take_back(self.trainer, self._schedulers)
        self._note(update, answer, None, logs=logs)

    def _read(self, update: Pending) -> Answer:
        answer = update.read()
        if answer.shared:
            skipped, *told = answer.shared
            noted = (number for number, is_told in zip(_SIGNALS, told, strict=True) if is_told)
            self._hear(int(skipped), next(noted, 0))
        return answer

    def _note(self, update: Pending, answer: Answer, scaler: GradScaler | None, *, logs: bool) -> None:
        """Count an update, made or not, and log the numbers of one that was made."""
        if not answer.failed:
            self._has_updated(scaler)
            if logs and self._figures.may_be_logged:
                self._log_update(update, answer)
        elif answer.count != 0:
            self._has_skipped(update.window, scaler)

    def _prepare_gradients(self, optimizers: list[Optimizer], scaler: GradScaler | None) -> None:
        """Give the gradients to what the optimizers update, without the loss scale."""
        if self.masters is not None:
            self.masters.take_gradients()
        if scaler is not None:
            for optimizer in optimizers:
                scaler.unscale_(optimizer)

    def _shared(self, count: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Sums over ranks: the count of a window, and what ranks tell each other. One rank hears itself at once."""
        skipped, noted = self.skips.uncounted("train"), self.noted_signal()
        if self.trainer.world_size == 1:
            self._hear(skipped, noted)
            return count, []
        own = [float(skipped), *(float(noted == number) for number in _SIGNALS)]  # float32 counts to 2^24
        numbers_N = torch.cat([count[None], on_device(torch.tensor(own), self.device)])
        count, *shared = self._over_ranks(numbers_N).unbind()
        return count, shared

    def _hear(self, skipped: int, signal_number: int) -> None:
        self.skips.count("train", skipped, self.current_epoch)
        self.agreed_signal = signal_number

    def _over_ranks(self, values: Tensor) -> Tensor:
        """Sums over all ranks."""
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(values)
        return values

    def _step(self, optimizers: list[Optimizer], scaler: GradScaler | None) -> None:
        # Lightning increments `global_step` in these two hooks of an optimizer wrapper. They are called for one
        # wrapper only, so `global_step` is the number of updates.
        counter = self._wrapped_optimizers()[0]
        counter._on_before_step()
        for optimizer in optimizers:
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
        if scaler is not None:
            scaler.update()
        if self.masters is not None:
            self.masters.round()
        counter._on_after_step()
        for scheduler in self._schedulers:
            if isinstance(scheduler, UpdateScheduler):
                scheduler.scheduler.step()

    def _has_updated(self, scaler: GradScaler | None) -> None:
        """Start counting again after an update."""
        if self._overflows_in_a_row:
            assert scaler is not None
            number, self._overflows_in_a_row = self._overflows_in_a_row, 0
            self.print(f"fp16: loss scale {scaler.get_scale():g}, after {number} updates that overflowed were skipped")
        self._nonfinite_in_a_row = 0

    def _has_skipped(self, window: Sequence[Part], scaler: GradScaler | None) -> None:
        """Count an update that was not finite, and name its utterances unless only the loss scale was too large.

        Raises:
            TrainingError: There were too many in a row.
        """
        assert self.optim is not None
        self.nonfinite_updates += 1
        named, is_loss = not_finite(window)
        if scaler is not None and not is_loss:
            self._overflows_in_a_row += 1
            if scaler.get_scale() < _SMALLEST_SCALE:
                what = f"gradients overflow in fp16 at any loss scale, in {self._overflows_in_a_row} updates in a row"
                raise TrainingError("training", what, "use bf16 or fp32, or lower the learning rate")
            return
        self._nonfinite_in_a_row += 1
        self.print(f"update skipped, {'a loss is' if is_loss else 'gradients are'} not finite; {named}")
        if self._nonfinite_in_a_row >= self.optim.max_nonfinite:
            what = f"{self._nonfinite_in_a_row} consecutive updates were not finite; the last had {named}"
            remedy = "check these utterances, lower the learning rate, or use bf16 or fp32"
            raise TrainingError("training", what, remedy)

    def step_on_metrics(self) -> None:
        """Step the schedulers that follow a validation metric.

        Raises:
            TrainingError: The metric was not logged.
        """
        for scheduler in self._schedulers:
            if isinstance(scheduler, MetricScheduler):
                metrics = self.trainer.callback_metrics
                if scheduler.monitor not in metrics:
                    what, remedy = f"no metric '{scheduler.monitor}'", f"use one of {', '.join(sorted(metrics))}"
                    raise TrainingError("schedulers.monitor", what, remedy)
                scheduler.scheduler.step(float(metrics[scheduler.monitor]))

    # Logging ---------------------------------------------------------------------------------------------------

    def log_train(self, name: str, value: Tensor, batch_size: int) -> None:
        """In a training step, log a number of the batch or of its update, if loggers write after the step."""
        self._figures.keep(name, value, batch_size)

    def _log_update(self, update: Pending, answer: Answer) -> None:
        """Log the learning rates, the norm of all gradients, and the norm of each optimizer's."""
        mean = _LOSS_DIVISOR * self.trainer.world_size / answer.count
        self.log_train("train/grad_norm", torch.tensor(math.hypot(*answer.norms) * mean), 1)
        for config, rate, norm in zip(self.trainer.lr_scheduler_configs, update.rates, answer.norms, strict=True):
            name = str(config.name)
            self.log_train(name, torch.tensor(rate), 1)
            self.log_train(f"train/grad_norm/{name.removeprefix('lr/')}", torch.tensor(norm * mean), 1)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Set the step of the loggers to the number of updates. With manual optimization, Lightning counts batches."""
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = max(0, self.trainer.global_step - 1)

    def on_train_epoch_start(self) -> None:
        """Count the unreadable utterances of each epoch."""
        self.skips.begin("train")

    def on_train_epoch_end(self) -> None:
        """Log the number of skipped updates so far, and write and show what could not be read in this epoch."""
        self.log("train/nonfinite_updates", float(self.nonfinite_updates))
        self.skips.finish("train", self.current_epoch)
