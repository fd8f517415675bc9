"""Coverage: a bonus for each frame that the attention of a text has covered (Chorowski and Jaitly, 2016).

An attention decoder that stops too early, or that repeats itself, can have a high probability for each token. The
coverage of a text is the number of frames whose attention weights, summed over the steps so far, exceed a threshold
(arXiv:1612.02695)::

    looked(f, u)   = looked(f, u-1) + attention(f, u)                      frame f, token u
    coverage(u)    = number of frames f with looked(f, u) > threshold
    score(u)       = weight * (coverage(u) - coverage(u-1))

A text that leaves speech out covers fewer frames. A text that repeats itself covers nothing twice.
"""

from typing import Any, Protocol

from torch import Tensor

from ssl_asr.decoding.step_model import StepModel


class AttentionState(Protocol):
    """State of a decoder that can keep its attention weights."""

    watch: bool
    """Whether to keep the weights of each step."""

    @property
    def weights_NF(self) -> Tensor | None:
        """Attention weights of the last step, if `watch` is set.

        There is one row for each beam, or for each utterance before the beams are spread.
        """


class CoverageScorer:
    """Coverage as a `ssl_asr.decoding.step_model.Scorer`. It wraps the decoder that it watches.

    Args:
        decoder: Decoder. Its states are `AttentionState`.
        beams: Number of beams per utterance.
        weight: Score of each covered frame.
        threshold: Attention weight that covers a frame, summed over the steps.
    """

    def __init__(self, decoder: StepModel, *, beams: int, weight: float, threshold: float) -> None:
        self.decoder, self.beams, self.weight, self.threshold = decoder, beams, weight, threshold
        self._state: AttentionState
        self._looked_NF: Tensor | None = None

    @property
    def max_tokens(self) -> int:
        """Longest text of the decoder in tokens."""
        return self.decoder.max_tokens

    def begin(self, h_BFD: Tensor, context_lengths_B: Tensor, max_tokens: int) -> Any:
        """An empty cache of the decoder, which keeps its attention weights."""
        state: Any = self.decoder.begin(h_BFD, context_lengths_B, max_tokens)
        state.watch = True
        self._state = state
        return state

    def step(self, tokens_BU: Tensor, state: Any) -> Tensor:
        """Logits of the decoder after the last token, ``logits_BV``."""
        return self.decoder.step(tokens_BU, state)

    def scores(self, log_probs_NV: Tensor, end_id: int) -> Tensor:
        """Score of the frames that the last step newly covered, equal for every token, ``scores_NV``."""
        assert self._state.weights_NF is not None
        # Sums over many steps, which 16 bits would round.
        weights_NF = self._state.weights_NF.float()
        # The first step runs before the beams are spread.
        if len(weights_NF) != len(log_probs_NV):
            weights_NF = weights_NF.repeat_interleave(self.beams, dim=0)
        before_NF = weights_NF.new_zeros(weights_NF.shape) if self._looked_NF is None else self._looked_NF
        self._looked_NF = before_NF + weights_NF
        new_N = (self._looked_NF > self.threshold).sum(1) - (before_NF > self.threshold).sum(1)
        gain_N1 = self.weight * new_N.to(log_probs_NV.dtype)[:, None]
        return gain_N1.expand_as(log_probs_NV)

    def select(self, rows_N: Tensor, tokens_N: Tensor) -> None:
        """Keep the attention of each beam's parent row."""
        assert self._looked_NF is not None
        self._looked_NF = self._looked_NF[rows_N]

    def keep(self, rows_N: Tensor) -> None:
        """Keep only these rows."""
        assert self._looked_NF is not None
        self._looked_NF = self._looked_NF[rows_N]
