"""What every task shares: two optimizers without the known faults, frozen parts, scores and predictions."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from ssl_asr.data.state_store import state_digest
from ssl_asr.errors import CheckpointError, TrainingError
from ssl_asr.metrics.edit import char_edits, word_edits
from ssl_asr.metrics.error_rate import ErrorRate
from ssl_asr.metrics.report import Normalizer, Prediction
from ssl_asr.models.encoder import EncoderOutput, LayerGroup
from ssl_asr.models.freezing import FreezePolicy, Progress, apply_policy, check_partition
from ssl_asr.training.optimizers import OptimizerConfig, group_scales
from ssl_asr.training.schedulers import MetricScheduler, SchedulerConfig, UpdateScheduler
from ssl_asr.training.state_cache import StateCache
from ssl_asr.types import Batch, Hypothesis, Skip, Tokenizer


@dataclass(frozen=True, slots=True)
class Loss:
    """A sum over ``count`` tokens (seq2seq) or utterances (CTC), a scalar tensor each.

    Windows and ranks are averaged over all of what they sum.
    """

    total: Tensor
    count: Tensor


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How updates are made: one of each kind for the pretrained side and for the new one.

    Attributes:
        optimizers: ``encoder`` and ``rest``.
        schedulers: ``encoder`` and ``rest``.
        accumulate: batches an update.
        clip_norm: the most the global norm over every parameter of both may be; None for no limit.
        max_nonfinite: updates in a row that may be skipped as not finite.
    """

    optimizers: dict[str, OptimizerConfig]
    schedulers: dict[str, SchedulerConfig]
    accumulate: int
    clip_norm: float | None
    max_nonfinite: int


@dataclass(frozen=True, slots=True)
class GroupRow:
    """A row of the table of what trains."""

    side: str
    name: str
    trainable: int
    total: int
    lr: float | None


class ASRModule(L.LightningModule):
    """A model that trains with two optimizers and transcribes.

    The first optimizer has the pretrained encoder, the second all the rest; a side with nothing to train has
    none. ``global_step`` counts updates. A subclass adds `loss` and `transcribe`.

    Args:
        encoder: the pretrained side.
        rest: the other trainable part (head, or decoder without its encoder).
        rest_groups: the layer groups of ``rest``.
        tokenizer: its state goes into checkpoints.
        policy: which layer groups train.
        optim: how updates are made; None for a module that only transcribes.
        normalizers: by name; the first one's WER is ``val/wer``.

    ``total_updates``, the length of the run that schedules need, is set once the data are known; ``state_cache``,
    where a frozen encoder's states are kept.
    """

    def __init__(
        self,
        *,
        encoder: Any,
        rest: nn.Module,
        rest_groups: Sequence[LayerGroup],
        tokenizer: Tokenizer,
        policy: FreezePolicy,
        optim: OptimConfig | None,
        normalizers: dict[str, Normalizer],
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.tokenizer, self.policy, self.optim = tokenizer, policy, optim
        self.normalizers = normalizers
        self.total_updates = 0
        self.state_cache: StateCache | None = None
        self.predictions: dict[str, list[Prediction]] = {}
        self.skipped_audio: dict[str, list[Skip]] = {}
        self.test_names: list[str] = []
        self.nonfinite_updates = 0
        self._nonfinite_in_a_row = 0
        self._window: list[tuple[Tensor, list[str]]] = []
        self._sides: dict[str, tuple[nn.Module, Sequence[LayerGroup]]] = {
            "encoder": (encoder, list(encoder.layer_groups())),
            "rest": (rest, list(rest_groups)),
        }
        self._freeze()
        self._metrics = nn.ModuleDict(
            {f"{kind}_{name}": ErrorRate(edits) for name in normalizers for kind, edits in _KINDS.items()}
        )
        self._val_loss: list[tuple[Tensor, Tensor]] = []

    # What trains -----------------------------------------------------------------------------------------

    def _names(self, side: str) -> list[str]:
        return [group.name for group in self._sides[side][1]]

    def _freeze(self) -> None:
        """Freeze what never trains; what thaws later is open until the run starts, so that DDP knows of it."""
        for module, groups in self._sides.values():
            check_partition(groups, module.parameters())
        self._open(self.policy.trainable(self._names("encoder"), self._names("rest")))

    def _open(self, trainable: frozenset[str]) -> None:
        self._trainable = trainable
        self._frozen: list[nn.Module] = []
        for side, (module, groups) in self._sides.items():
            own = trainable & set(self._names(side))
            frozen = apply_policy(groups, own, self.policy.selects)
            # Dropout between the groups belongs to none of them: a side that is frozen whole is so whole.
            self._frozen += frozen if own else [module]
        self._encoder_frozen = not any(p.requires_grad for p in self._sides["encoder"][0].parameters())

    def _thaw(self) -> None:
        """What trains from here on, at the start of a window, where every gradient is empty."""
        progress = Progress(self.trainer.global_step, self.trainer.current_epoch)
        trainable = self.policy.trainable_at(self._names("encoder"), self._names("rest"), progress)
        if trainable == self._trainable:
            return
        before = self._trainable
        self._open(trainable)
        self.train()
        opened = [name for side in self._sides for name in self._names(side) if name in trainable - before]
        if opened:
            self.print(f"update {progress.update}: {', '.join(opened)} thawed")

    def train(self, mode: bool = True) -> "ASRModule":
        """Train mode for what trains; frozen parts stay in eval mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def on_train_start(self) -> None:
        """Lightning restores modes at its own discretion; frozen parts are frozen from the first batch."""
        self.train()
        self._thaw()
        if self.state_cache is not None:
            self.state_cache.store.rank = self.global_rank

    @property
    def reads_layers(self) -> bool:
        """Whether the task reads the states of every layer of the encoder."""
        return False

    def encode(self, batch: Batch) -> EncoderOutput:
        """The encoder's states; without gradients where nothing of it trains, from the cache where there is one."""
        if self.state_cache is not None and not self.trainer.testing:
            assert self._encoder_frozen
            return self.state_cache.encode(batch)
        encoder: Any = self._sides["encoder"][0]
        with torch.no_grad() if self._encoder_frozen else nullcontext():
            out: EncoderOutput = encoder(batch.waveform_BT, batch.lengths_B, layers=self.reads_layers)
        return out

    def group_table(self) -> list[GroupRow]:
        """What trains: a row for each layer group."""
        rows = []
        for side, (_, groups) in self._sides.items():
            optimizer = None if self.optim is None else self.optim.optimizers[side]
            decay = 1.0 if optimizer is None else optimizer.layer_decay
            scales = group_scales(groups, decay)
            for group in groups:
                sizes = [(p.numel(), p.requires_grad) for p in group.parameters()]
                trains = sum(n for n, wanted in sizes if wanted)
                total = sum(n for n, _ in sizes)
                lr = optimizer.lr * scales[group.name] if optimizer is not None and trains else None
                rows.append(GroupRow(side, group.name, trains, total, lr))
        return rows

    # Checkpoints -----------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out what never changes, where the policy says so, and note which weights that was."""
        if not self.policy.only_trained:
            return
        left_out = [name for name, parameter in self.named_parameters() if not parameter.requires_grad]
        weights = checkpoint["state_dict"]
        checkpoint["frozen"] = state_digest((name, weights.pop(name)) for name in left_out)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take what was left out from the pretrained weights that are loaded already."""
        checkpoint["state_dict"] = self.with_frozen(checkpoint["state_dict"], checkpoint)

    def with_frozen(self, weights: dict[str, Tensor], checkpoint: dict[str, Any]) -> dict[str, Tensor]:
        """The weights of a checkpoint, with those it left out from the model as it is.

        Raises:
            CheckpointError: the model has other pretrained weights than the checkpoint was made with.
        """
        if "frozen" not in checkpoint:
            return weights
        own = {name: value for name, value in self.state_dict().items() if not name.startswith("_metrics.")}
        left_out = {name: value for name, value in own.items() if name not in weights}
        if state_digest(left_out.items()) != checkpoint["frozen"]:
            what = "holds what was trained beside other pretrained weights than these"
            raise CheckpointError("checkpoint", what, "use the backbone.source and revision it was trained from")
        return {**left_out, **weights}

    # What a task adds --------------------------------------------------------------------------------------

    def loss(self, batch: Batch, out: EncoderOutput | None = None) -> Loss:
        """The summed loss of a batch and what to divide it by; ``out`` is the batch encoded, where it is already."""
        raise AssertionError("a task defines its loss")

    def transcribe(self, batch: Batch, out: EncoderOutput | None = None) -> list[Hypothesis]:
        """A hypothesis for each utterance, in batch order; ``out`` as in `loss`."""
        raise AssertionError("a task defines how it transcribes")

    # Updates -----------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> tuple[list[Optimizer], list[dict[str, Any]]]:  # type: ignore[override]
        """Two optimizers and two schedulers, or one of each where a side has nothing to train."""
        assert self.optim is not None
        optimizers, configs = [], []
        self._schedulers: list[UpdateScheduler | MetricScheduler] = []
        for side, (_, groups) in self._sides.items():
            if not any(p.requires_grad for group in groups for p in group.parameters()):
                continue
            optimizer = self.optim.optimizers[side].build(groups)
            scheduler = self.optim.schedulers[side].build(optimizer, self.total_updates)
            optimizers.append(optimizer)
            self._schedulers.append(scheduler)
            config = {"scheduler": scheduler.scheduler, "name": f"lr/{side}"}
            if isinstance(scheduler, MetricScheduler):
                config |= {"monitor": scheduler.monitor, "reduce_on_plateau": True}
            configs.append(config)
        return optimizers, configs

    def _bare_optimizers(self) -> list[Optimizer]:
        return [optimizer.optimizer for optimizer in self._wrapped_optimizers()]

    def _wrapped_optimizers(self) -> list[Any]:
        wrapped = self.optimizers()
        return list(wrapped) if isinstance(wrapped, list) else [wrapped]

    def _optimized(self) -> Iterator[nn.Parameter]:
        for optimizer in self._bare_optimizers():
            for group in optimizer.param_groups:
                yield from group["params"]

    @property
    def _scaler(self) -> GradScaler | None:
        scaler: GradScaler | None = getattr(self.trainer.precision_plugin, "scaler", None)
        return scaler

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Accumulate the gradients of a batch and, at a window's end, make one update."""
        assert self.optim is not None
        if self.policy.thaws and not self._window:
            self._thaw()
        loss = self.loss(batch) if len(batch) else self._no_loss()
        ends = (batch_idx + 1) % self.optim.accumulate == 0 or self.trainer.is_last_batch
        with nullcontext() if ends else self._without_sync():
            # A sum divided by a constant: the mean over the whole window is made when its count is known.
            self.manual_backward(loss.total / self._nominal)
        self._window.append((loss.count.detach(), batch.ids))
        self.skipped_audio.setdefault("train", []).extend(batch.skipped)
        if len(batch):
            self.log_train("train/loss", loss.total.detach() / loss.count.detach(), len(batch))
            encoder: Any = self._sides["encoder"][0]
            if encoder.masked_share is not None:
                self.log_train("train/masked_share", torch.tensor(encoder.masked_share), len(batch))
        if ends:
            self._update()

    # Keeps summed losses in a range that fp16 gradients survive; it cancels exactly in the mean.
    _nominal = 64.0

    def _no_loss(self) -> Loss:
        """A zero that every rank can back-propagate, for a batch of which nothing could be read."""
        total = sum((p.sum() * 0.0 for p in self._optimized()), torch.zeros((), device=self.device))
        return Loss(total, torch.zeros((), device=self.device))

    def _without_sync(self) -> AbstractContextManager[None]:
        model: Any = self.trainer.strategy.model
        context: AbstractContextManager[None] = model.no_sync() if hasattr(model, "no_sync") else nullcontext()
        return context

    def _update(self) -> None:
        """One update of both optimizers: unscale, mean over the window, clip once, step both, scaler once."""
        assert self.optim is not None
        window, self._window = self._window, []
        optimizers, scaler = self._bare_optimizers(), self._scaler
        if scaler is not None:
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
        gradients = [p.grad for p in self._optimized() if p.grad is not None]
        to_mean = self._to_mean(torch.stack([count for count, _ in window]).sum())
        norm = nn.utils.get_total_norm(gradients) * to_mean
        finite = bool(torch.isfinite(norm))
        if finite:
            # Mean and clip in one pass over the gradients.
            clip = 1.0 if self.optim.clip_norm is None else (self.optim.clip_norm / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, to_mean * clip)
            self._step(optimizers, scaler)
            self.log_train("train/grad_norm", norm, 1)
        elif scaler is not None:
            # The scaler saw the overflow when it unscaled: stepping through it would skip, updating it halves.
            scaler.update()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        self._count_nonfinite(finite, [i for _, ids in window for i in ids], overflow=scaler is not None)

    def _to_mean(self, count: Tensor) -> Tensor:
        """From DDP's mean over ranks of sums over the window to the mean over everything in it: a factor."""
        world_size = self.trainer.world_size
        if world_size > 1:
            torch.distributed.all_reduce(count)
        return self._nominal * world_size / count.clamp(min=1)

    def _step(self, optimizers: list[Optimizer], scaler: GradScaler | None) -> None:
        # Lightning counts an update in these two hooks of its wrapper: called once, whatever the number of
        # optimizers, `global_step` is the number of updates.
        counter = self._wrapped_optimizers()[0]
        counter._on_before_step()
        for optimizer in optimizers:
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
        if scaler is not None:
            scaler.update()
        counter._on_after_step()
        for scheduler in self._schedulers:
            if isinstance(scheduler, UpdateScheduler):
                scheduler.scheduler.step()
        for wrapped, config in zip(optimizers, self.trainer.lr_scheduler_configs, strict=True):
            self.log_train(str(config.name), torch.tensor(wrapped.param_groups[0]["lr"]), 1)

    def _count_nonfinite(self, finite: bool, ids: list[str], *, overflow: bool) -> None:
        assert self.optim is not None
        if finite:
            self._nonfinite_in_a_row = 0
            return
        self.nonfinite_updates += 1
        self._nonfinite_in_a_row += 1
        why = "the scale was too large for fp16, or the loss is not finite" if overflow else "not finite"
        self.print(f"update skipped, gradients {why}; utterances: {', '.join(ids)}")
        if self._nonfinite_in_a_row >= self.optim.max_nonfinite:
            what = f"{self._nonfinite_in_a_row} updates in a row were not finite; the last saw {', '.join(ids[:8])}"
            raise TrainingError("training", what, "look at those utterances, lower the rate, or use bf16 or fp32")

    def log_train(self, name: str, value: Tensor, batch_size: int) -> None:
        """Log a number of a training batch or update."""
        self.log(name, value.float(), on_step=True, on_epoch=False, batch_size=batch_size)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Keep the loggers' axis in updates: with manual optimization Lightning counts batches there."""
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = max(0, self.trainer.global_step - 1)

    def on_train_epoch_end(self) -> None:
        """Log how many updates were skipped so far."""
        self.log("train/nonfinite_updates", float(self.nonfinite_updates))
        self._flush_states()

    def _flush_states(self) -> None:
        """Put on disk what was encoded, on every rank, before anyone asks which states there are."""
        if self.state_cache is not None:
            self.state_cache.store.flush()
            self.trainer.strategy.barrier()

    # Evaluation ----------------------------------------------------------------------------------------------

    def _hear(self, batch: Batch, split: str, out: EncoderOutput | None) -> None:
        hypotheses = self.transcribe(batch, out)
        pairs = zip(batch.utterances, hypotheses, strict=True)
        self.predictions.setdefault(split, []).extend(Prediction.of(*pair) for pair in pairs)

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        self.predictions.pop("dev", None)
        self.skipped_audio.pop("dev", None)
        self._val_loss = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and hypotheses of a dev batch."""
        self.skipped_audio.setdefault("dev", []).extend(batch.skipped)
        if len(batch):
            out = self.encode(batch)
            loss = self.loss(batch, out)
            self._val_loss.append((loss.total.detach(), loss.count.detach()))
            self._hear(batch, "dev", out)

    def on_validation_epoch_end(self) -> None:
        """Log corpus-level rates over all ranks, and step the schedulers that wait for a metric."""
        predictions = self.predictions.get("dev", [])
        for name, normalize in self.normalizers.items():
            refs = [normalize(p.ref, p.lang) for p in predictions]
            hyps = [normalize(p.hyp, p.lang) for p in predictions]
            for kind in _KINDS:
                metric = self._metrics[f"{kind}_{name}"]
                assert isinstance(metric, ErrorRate)
                metric.update(refs, hyps)
                value = metric.compute()
                metric.reset()
                self.log(f"val/{kind}/{name}", value.float(), rank_zero_only=True)
                if name == next(iter(self.normalizers)):
                    self.log(f"val/{kind}", value.float(), prog_bar=True)
        self.log("val/loss", self._mean_val_loss())
        self._flush_states()
        if not self.trainer.sanity_checking:
            self._step_on_metrics()

    def _mean_val_loss(self) -> Tensor:
        # Summed on the CPU, since not every accelerator has float64.
        pairs = [torch.stack(pair) for pair in self._val_loss]
        sums = torch.stack(pairs).cpu().double().sum(0) if pairs else torch.zeros(2, dtype=torch.float64)
        if self.trainer.world_size > 1:
            shares = sums.float().to(self.device)
            torch.distributed.all_reduce(shares)
            sums = shares.cpu().double()
        return (sums[0] / sums[1].clamp(min=1)).float()

    def _step_on_metrics(self) -> None:
        for scheduler in getattr(self, "_schedulers", []):
            if isinstance(scheduler, MetricScheduler):
                metrics = self.trainer.callback_metrics
                if scheduler.monitor not in metrics:
                    remedy = f"one of {', '.join(sorted(metrics))}"
                    raise TrainingError("schedulers.monitor", f"no metric '{scheduler.monitor}'", remedy)
                scheduler.scheduler.step(float(metrics[scheduler.monitor]))

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Hypotheses of a test batch."""
        split = self.test_names[dataloader_idx]
        self.skipped_audio.setdefault(split, []).extend(batch.skipped)
        if len(batch):
            self._hear(batch, split, None)

    def gathered_predictions(self, split: str) -> list[Prediction]:
        """The predictions of all ranks, each id once, in order of id."""
        own = self.predictions.get(split, [])
        shares: list[list[Prediction]] = [own]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            shares = [[] for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather_object(shares, own)
        by_id = {prediction.id: prediction for share in shares for prediction in share}
        return [by_id[key] for key in sorted(by_id)]


_KINDS = {"wer": word_edits, "cer": char_edits}
