"""Word and character error rate over a corpus, as a torchmetrics Metric with int64 counts."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from ssl_asr.metrics.edit import Edits


class ErrorRate(Metric):
    """Corpus-level error rate: errors divided by reference tokens, both summed over all utterances of all ranks.

    ``compute`` returns a ratio. It can be larger than 1, because insertions count as errors. It is NaN before the
    first update, and infinity if there are errors but no reference token.

    Args:
        edits: Counts the edits of one pair: `word_edits` or `char_edits`.

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
        """Add the edits of pairs of texts. Raises ValueError if the lists differ in length."""
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
        """Sum of the edits of all updates."""
        return Edits(*(int(count) for count in self.counts.tolist()))

    def compute(self) -> Tensor:
        """Error rate, float64."""
        rate = self.totals().rate if int(self.utterances) else float("nan")
        return torch.tensor(rate, dtype=torch.float64)
