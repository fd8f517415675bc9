"""Coverage: a bonus for every frame that a text has accounted for (Chorowski and Jaitly, 2016, arXiv:1612.02695).

A decoder that may stop too early or begin again scores well token by token. Frames that have been looked at for more
than a threshold in all, over the whole text, count once each: a text that leaves speech out lacks them, and one that
says it twice gains nothing.
"""

from typing import Any, Protocol

from torch import Tensor

from ssl_asr.decoding.seq2seq import StepModel


class Watched(Protocol):
    """The state of a decoder that can be asked where it looked."""

    watch: bool

    @property
    def weights_NF(self) -> Tensor | None:
        """Where the decoder looked at the last step, a row for each beam, or for each utterance before there are any.

        There where ``watch`` is set.
        """


class CoverageScorer:
    """A `Scorer` that is also the model it watches.

    Args:
        decoder: whose states are `Watched`.
        beams: of each utterance.
        weight: of each frame that is covered.
        threshold: how much attention in all covers a frame.
    """

    def __init__(self, decoder: StepModel, *, beams: int, weight: float, threshold: float) -> None:
        self.decoder, self.beams, self.weight, self.threshold = decoder, beams, weight, threshold
        self.max_tokens = decoder.max_tokens
        self._state: Watched
        self._looked_NF: Tensor | None = None

    def begin(self, h_BFD: Tensor, context_lengths_B: Tensor, max_tokens: int) -> Any:
        """The decoder's cache, watched."""
        state = self.decoder.begin(h_BFD, context_lengths_B, max_tokens)
        state.watch = True
        self._state = state
        return state

    def step(self, tokens_BU: Tensor, state: Any) -> Tensor:
        """The decoder's logits."""
        return self.decoder.step(tokens_BU, state)

    def scores(self, log_probs_NV: Tensor, end_id: int) -> Tensor:
        """What the last step newly covered, the same for every token."""
        weights_NF = self._state.weights_NF
        assert weights_NF is not None
        if len(weights_NF) != len(log_probs_NV):
            weights_NF = weights_NF.repeat_interleave(self.beams, dim=0)
        before_NF = weights_NF.new_zeros(weights_NF.shape) if self._looked_NF is None else self._looked_NF
        self._looked_NF = before_NF + weights_NF
        new_N = (self._looked_NF > self.threshold).sum(1) - (before_NF > self.threshold).sum(1)
        gain_N1 = self.weight * new_N.to(log_probs_NV.dtype)[:, None]
        return gain_N1.expand_as(log_probs_NV)

    def select(self, rows_N: Tensor, tokens_N: Tensor) -> None:
        """What the beams that were chosen looked at."""
        assert self._looked_NF is not None
        self._looked_NF = self._looked_NF[rows_N]

    def keep(self, rows_N: Tensor) -> None:
        """Keep only these rows."""
        assert self._looked_NF is not None
        self._looked_NF = self._looked_NF[rows_N]
