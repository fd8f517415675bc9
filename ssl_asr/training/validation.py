"""Validation during training: corpus-level error rates over all ranks, and the mean loss."""

import math

import torch
from torch import Tensor, nn

from ssl_asr.errors import TrainingError
from ssl_asr.metrics.edit import char_edits, word_edits
from ssl_asr.metrics.error_rate import ErrorRate
from ssl_asr.metrics.report import Prediction
from ssl_asr.models.encoder import EncoderOutput, SpeechEncoder
from ssl_asr.training.sides import OptimConfig, Sides
from ssl_asr.training.updates import UpdateLoop
from ssl_asr.types import Batch, Hypothesis, Normalizer

# In the order of `Prediction.pairs`.
_KINDS = {"wer": word_edits, "cer": char_edits}


class ValidationLoop(UpdateLoop):
    """An `UpdateLoop` that scores the dev split. A subclass defines `encode` and `decode`.

    Logged, for each normalizer NAME: ``val/wer/NAME`` and ``val/cer/NAME``, and as ``val/wer`` and ``val/cer`` the
    first normalizer's; ``val/loss`` is the mean over all tokens or utterances of the split.

    Args:
        encoder, sides, optim: See `UpdateLoop`.
        normalizers: Text normalizers by name. The first one's WER is ``val/wer``.
    """

    def __init__(
        self,
        *,
        encoder: SpeechEncoder,
        sides: Sides,
        optim: OptimConfig | None,
        normalizers: dict[str, Normalizer],
    ) -> None:
        super().__init__(encoder=encoder, sides=sides, optim=optim)
        self.normalizers = normalizers
        self.dev_predictions: list[Prediction] = []
        self._val_loss: list[tuple[Tensor, Tensor]] = []
        self._metrics = nn.ModuleDict(
            {f"{kind}_{name}": ErrorRate(edits) for name in normalizers for kind, edits in _KINDS.items()}
        )

    def encode(self, batch: Batch) -> EncoderOutput:
        """The encoder's output for a batch."""
        raise NotImplementedError

    def transcribe(self, batch: Batch, out: EncoderOutput | None = None) -> list[Hypothesis]:
        """One hypothesis for each utterance, in batch order."""
        raise NotImplementedError

    def on_validation_epoch_start(self) -> None:
        """Discard the results of the last validation."""
        self.dev_predictions, self._val_loss = [], []
        self.skips.begin("dev")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and hypotheses of a dev batch, which is encoded once."""
        self.skips.add("dev", batch.skipped)
        if len(batch):
            out = self.encode(batch)
            loss = self.loss(batch, out)
            self._val_loss.append((loss.total.detach(), loss.count.detach()))
            pairs = zip(batch.utterances, self.transcribe(batch, out), strict=True)
            self.dev_predictions += [Prediction.of(utterance, hypothesis) for utterance, hypothesis in pairs]

    def on_validation_epoch_end(self) -> None:
        """Log error rates over all ranks, and step the schedulers that follow a metric.

        Raises:
            TrainingError: Too many utterances of the split could not be read, so that no score stands for the split.
        """
        own = torch.tensor(float(self.skips.uncounted("dev")), device=self.device)
        self.skips.count("dev", int(self._over_ranks(own)), self.current_epoch)
        self.skips.finish("dev", self.current_epoch)
        for name, normalize in self.normalizers.items():
            both = [p.pairs(normalize) for p in self.dev_predictions]
            for place, kind in enumerate(_KINDS):
                metric = self._metrics[f"{kind}_{name}"]
                assert isinstance(metric, ErrorRate)
                metric.update([pairs[place][0] for pairs in both], [pairs[place][1] for pairs in both])
                value = metric.compute()
                metric.reset()
                if not self.trainer.sanity_checking:
                    _check_rate(float(value), name)
                self.log(f"val/{kind}/{name}", value.float(), rank_zero_only=True)
                if name == next(iter(self.normalizers)):
                    self.log(f"val/{kind}", value.float(), prog_bar=True)
        self.log("val/loss", self._mean_val_loss())
        if not self.trainer.sanity_checking:
            self.step_on_metrics()

    def _mean_val_loss(self) -> Tensor:
        # Summed on the CPU, since not every accelerator has float64.
        pairs = [torch.stack(pair) for pair in self._val_loss]
        sums = torch.stack(pairs).cpu().double().sum(0) if pairs else torch.zeros(2, dtype=torch.float64)
        if self.trainer.world_size > 1:
            shares = sums.float().to(self.device)
            torch.distributed.all_reduce(shares)
            sums = shares.cpu().double()
        # Without any weight there is no mean. Callbacks that follow the loss need a number.
        return (sums[0] / sums[1]).float() if sums[1] > 0 else torch.zeros(())


def _check_rate(rate: float, normalizer: str) -> None:
    """Refuse an error rate that is no number, by which no checkpoint can be chosen.

    Raises:
        TrainingError: No utterance was decoded, or no reference has text.
    """
    if math.isnan(rate):
        raise TrainingError("validation", "no utterance of the dev set could be read", "see skipped.jsonl")
    if math.isinf(rate):
        what = f"all references that were decoded are empty after the normalizer {normalizer}"
        raise TrainingError("validation", what, "correct the dev set, or raise trainer.limit_val_batches")
