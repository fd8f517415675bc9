"""Word and character error rate over a corpus, as a torchmetrics Metric with int64 counts."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from ssl_asr.metrics.edit import Edits


class ErrorRate(Metric):
    """Errors over reference tokens, summed over all utterances of all ranks before the one division.

    Args:
        edits: counts the errors of one pair, `word_edits` or `char_edits`.

    ``compute`` gives a ratio (which passes 1.0 where there are many insertions); it is NaN before any update
    and infinite where every reference is empty and some hypothesis is not.

    Example:
        >>> from ssl_asr.metrics.edit import word_edits
        >>> wer = ErrorRate(word_edits)
        >>> wer.update(["a b c d"], ["a x c d"])
        >>> float(wer.compute())
        0.25
    """

    full_state_update = False
    higher_is_better = False
    counts: Tensor
    utterances: Tensor

    def __init__(self, edits: Callable[[str, str], Edits]) -> None:
        super().__init__()
        self._edits = edits
        self.add_state("counts", torch.zeros(4, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("utterances", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, references: Sequence[str], hypotheses: Sequence[str]) -> None:
        """Count the errors of these pairs; lists of unequal length are a `ValueError`."""
        if len(references) != len(hypotheses):
            raise ValueError(f"{len(references)} references and {len(hypotheses)} hypotheses")
        total = Edits()
        for reference, hypothesis in zip(references, hypotheses, strict=True):
            total += self._edits(reference, hypothesis)
        self.counts += torch.tensor(
            [total.sub, total.ins, total.dele, total.ref], dtype=torch.int64, device=self.counts.device
        )
        self.utterances += len(references)

    def totals(self) -> Edits:
        """The counts so far."""
        return Edits(*(int(count) for count in self.counts.tolist()))

    def compute(self) -> Tensor:
        """Errors over reference tokens, float64."""
        rate = self.totals().rate if int(self.utterances) else float("nan")
        return torch.tensor(rate, dtype=torch.float64)
