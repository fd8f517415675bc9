"""CTC prefix scores for joint CTC-attention decoding (Watanabe et al., 2017, "Hybrid CTC/attention architecture").

For a prefix ``h`` with last label ``l``, and log-probabilities ``y(c, t)`` of frames ``t = 1 ... T``::

    p_n(h, t)   all paths over frames 1 ... t that collapse to h and end in l
    p_b(h, t)   all paths over frames 1 ... t that collapse to h and end in blank

    phi(h, c, t)  = p_b(h, t) if c == l else logaddexp(p_b, p_n)(h, t)
    psi(h + c)    = logsumexp over t of  phi(h, c, t-1) + y(c, t)          CTC's text begins with h + c
    psi(h + end)  = logaddexp(p_b, p_n)(h, T)                              CTC's text is h

    score(c | h)  = weight * (psi(h + c) - psi(h))

A chosen label ``c`` gives the forward variables of the longer prefix::

    p_n(h + c, t) = y(c, t)     + logaddexp(p_n(h + c, t-1), phi(h, c, t-1))
    p_b(h + c, t) = y(blank, t) + logaddexp(p_b(h + c, t-1), p_n(h + c, t-1))

Both have the form ``x[t] = y[t] + logaddexp(x[t-1], e[t-1])``. With ``Y = cumsum(y)`` this is a cumulative sum::

    x[t] = Y[t] + logcumsumexp(e - Y)[t-1]

so there is no loop over frames or beams. The sums are float64, because ``e - Y`` cancels most digits.
"""

import torch
from torch import Tensor

# Log-probabilities are clamped here: small enough to be impossible, large enough to keep digits in sums over frames.
_MIN_LOG_PROB = -1e3
# Stand-in for log 0 that stays finite in sums.
_LOG_ZERO = -1e12


class CtcPrefixScorer:
    """CTC prefix scores as a `ssl_asr.decoding.step_model.Scorer`.

    Args:
        log_probs_BFV: CTC log-probabilities of shape (batch, frames, vocabulary).
        frame_lengths_B: Number of valid frames per utterance, int64, on the CPU.
        beams: Number of beams per utterance.
        blank: Id of the blank.
        weight: Weight of the CTC log-probabilities.
        candidates: Number of the decoder's most likely tokens that are scored, besides the end, or None for all.
            Other tokens are practically forbidden.
    """

    def __init__(
        self,
        log_probs_BFV: Tensor,
        frame_lengths_B: Tensor,
        *,
        beams: int,
        blank: int,
        weight: float,
        candidates: int | None,
    ) -> None:
        batch, frames, size = log_probs_BFV.shape
        device = log_probs_BFV.device
        self.blank, self.weight, self.candidates = blank, weight, candidates
        beyond_BF = (torch.arange(frames) >= frame_lengths_B[:, None]).to(device)
        # Padding is a sure blank, so the variables of an utterance's last frame hold until the end.
        inputs_BFV = log_probs_BFV.double().clamp(min=_MIN_LOG_PROB).masked_fill(beyond_BF[..., None], _MIN_LOG_PROB)
        inputs_BFV[..., blank] = inputs_BFV[..., blank].masked_fill(beyond_BF, 0.0)
        # The frames of a label side by side, because labels are what is picked at each token.
        self._inputs_BVF = inputs_BFV.transpose(1, 2).contiguous()
        self._utterance_N = torch.arange(batch, device=device).repeat_interleave(beams)
        # Forward variables p_b and p_n of the empty prefix. Index t is after frame t, index 0 before the first frame.
        blank_BF = inputs_BFV[..., blank].cumsum(1)
        self._blank_NF = torch.cat([blank_BF.new_zeros(batch, 1), blank_BF], 1).repeat_interleave(beams, 0)
        self._label_NF = torch.full_like(self._blank_NF, _LOG_ZERO)
        # Last label of each prefix, and psi of the prefix and of all its extensions.
        self._last_N = torch.full((batch * beams,), -1, device=device)
        self._psi_N = self._blank_NF.new_zeros(batch * beams)
        self._psi_NV = self._blank_NF.new_zeros(batch * beams, size)

    def scores(self, log_probs_NV: Tensor, end_id: int) -> Tensor:
        """Weighted gain of the prefix log-probability by each token, ``scores_NV``."""
        total_NF = torch.logaddexp(self._label_NF, self._blank_NF)
        psi_NV = torch.full_like(self._psi_NV, _LOG_ZERO)
        tokens_NC, inputs_NCF = self._candidates(log_probs_NV)
        psi_NC = (total_NF[:, None, :-1] + inputs_NCF).logsumexp(2)
        # A repeated label needs a blank in between, so phi is p_b.
        last_NF = self._inputs_of(self._last_N.clamp(min=0))
        repeat_N = (self._blank_NF[:, :-1] + last_NF).logsumexp(1)
        psi_NC = torch.where(tokens_NC == self._last_N[:, None], repeat_N[:, None], psi_NC)
        psi_NV.scatter_(1, tokens_NC, psi_NC)
        psi_NV[:, end_id] = total_NF[:, -1]
        self._psi_NV = psi_NV
        return (self.weight * (psi_NV - self._psi_N[:, None])).to(log_probs_NV.dtype)

    def _candidates(self, log_probs_NV: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens that are scored, and their log-probabilities in each frame."""
        size = self._psi_NV.shape[1]
        if self.candidates is None or self.candidates >= size:
            tokens_NC = torch.arange(size, device=self._psi_NV.device).expand_as(self._psi_NV)
            return tokens_NC, self._inputs_BVF[self._utterance_N]
        tokens_NC = log_probs_NV.topk(self.candidates, dim=1).indices
        return tokens_NC, self._inputs_BVF[self._utterance_N[:, None], tokens_NC]

    def _inputs_of(self, tokens_N: Tensor) -> Tensor:
        """Log-probabilities ``inputs_NF`` of one token of each row."""
        return self._inputs_BVF[self._utterance_N, tokens_N]

    def select(self, rows_N: Tensor, tokens_N: Tensor) -> None:
        """Forward variables of the chosen prefixes."""
        self._psi_N = self._psi_NV[rows_N, tokens_N]
        blank_NF, label_NF, last_N = self._blank_NF[rows_N], self._label_NF[rows_N], self._last_N[rows_N]
        phi_NF = torch.where((last_N == tokens_N)[:, None], blank_NF, torch.logaddexp(label_NF, blank_NF))
        self._label_NF = _forward(phi_NF, self._inputs_of(tokens_N))
        self._blank_NF = _forward(self._label_NF, self._inputs_BVF[self._utterance_N, self.blank])
        self._last_N = tokens_N

    def keep(self, rows_N: Tensor) -> None:
        """Keep only these rows."""
        self._utterance_N, self._last_N = self._utterance_N[rows_N], self._last_N[rows_N]
        self._blank_NF, self._label_NF = self._blank_NF[rows_N], self._label_NF[rows_N]
        self._psi_N, self._psi_NV = self._psi_N[rows_N], self._psi_NV[rows_N]


def _forward(entries_NF: Tensor, inputs_NF: Tensor) -> Tensor:
    """``x[t] = inputs[t] + logaddexp(x[t-1], entries[t-1])`` from ``x[0] = log 0``, by cumulative sums.

    Args:
        entries_NF: Log-probabilities of the paths that enter, with a column before the first frame.
        inputs_NF: Log-probabilities of each frame.

    Returns:
        The forward variables, with a column before the first frame.
    """
    sums_NF = torch.cat([torch.zeros_like(inputs_NF[:, :1]), inputs_NF.cumsum(1)], dim=1)
    forward_NF = (entries_NF[:, :-1] - sums_NF[:, :-1]).logcumsumexp(1) + sums_NF[:, 1:]
    return torch.cat([torch.full_like(forward_NF[:, :1], _LOG_ZERO), forward_NF], dim=1).clamp(min=_LOG_ZERO)
