"""CTC's opinion of a text while it is being written (Watanabe et al., 2017, "Hybrid CTC/attention architecture").

For each beam and each label that may follow, the probability that CTC's text begins so. Forward variables over the
frames are written as cumulative sums in log space, in float64, so that no loop over frames or beams is left.
"""

import torch
from torch import Tensor

# As good as impossible, and small enough that sums of thousands of frames keep their digits in float64.
_FLOOR = -1e3
_NEVER = -1e12


class CtcPrefixScorer:
    """A `Scorer` for joint decoding.

    Args:
        log_probs_BFV: of CTC.
        frame_lengths_B: int64 on the CPU.
        beams: of each utterance.
        blank: its id.
        weight: of CTC's log-probabilities.
        candidates: only so many of the decoder's likeliest tokens are looked at, the end always; None looks at all.
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
        self.blank, self.weight, self.candidates, self.beams = blank, weight, candidates, beams
        beyond_BF = (torch.arange(frames) >= frame_lengths_B[:, None]).to(device)
        # Beyond an utterance there is nothing but blanks: its last frame's values are carried to the end.
        inputs_BFV = log_probs_BFV.double().clamp(min=_FLOOR).masked_fill(beyond_BF[..., None], _FLOOR)
        inputs_BFV[..., blank] = inputs_BFV[..., blank].masked_fill(beyond_BF, 0.0)
        self._inputs_BFV = inputs_BFV
        self._utterance_N = torch.arange(batch, device=device).repeat_interleave(beams)
        # Forward variables before the first frame and after each: paths that end in a label, and in a blank.
        blank_BF = inputs_BFV[..., blank].cumsum(1)
        self._blank_NF = torch.cat([blank_BF.new_zeros(batch, 1), blank_BF], 1).repeat_interleave(beams, 0)
        self._label_NF = torch.full_like(self._blank_NF, _NEVER)
        self._last_N = torch.full((batch * beams,), -1, device=device)
        self._prefix_N = self._blank_NF.new_zeros(batch * beams)
        self._prefix_NV = self._blank_NF.new_zeros(batch * beams, size)

    def scores(self, log_probs_NV: Tensor, end_id: int) -> Tensor:
        """The weighted growth of the prefix's log-probability by each token."""
        whole_NF = torch.logaddexp(self._label_NF, self._blank_NF)
        prefix_NV = torch.full_like(self._prefix_NV, _NEVER)
        if self.candidates is None or self.candidates >= prefix_NV.shape[1]:
            inputs_NFC = self._inputs_BFV[self._utterance_N]
            tokens_NC = torch.arange(prefix_NV.shape[1], device=prefix_NV.device).expand_as(prefix_NV)
        else:
            tokens_NC = log_probs_NV.topk(self.candidates, dim=1).indices
            frames = self._inputs_BFV.shape[1]
            inputs_NFC = self._inputs_BFV[self._utterance_N].gather(2, tokens_NC[:, None].expand(-1, frames, -1))
        found_NC = (whole_NF[:, :-1, None] + inputs_NFC).logsumexp(1)
        # After a label that is the same, only paths that end in a blank may go on.
        last_NF1 = self._inputs_BFV[self._utterance_N].gather(
            2, self._last_N.clamp(min=0)[:, None, None].expand(-1, self._inputs_BFV.shape[1], 1)
        )
        again_N = (self._blank_NF[:, :-1] + last_NF1[..., 0]).logsumexp(1)
        found_NC = torch.where(tokens_NC == self._last_N[:, None], again_N[:, None], found_NC)
        prefix_NV.scatter_(1, tokens_NC, found_NC)
        prefix_NV[:, end_id] = whole_NF[:, -1]
        self._prefix_NV = prefix_NV
        return (self.weight * (prefix_NV - self._prefix_N[:, None])).to(log_probs_NV.dtype)

    def select(self, rows_N: Tensor, tokens_N: Tensor) -> None:
        """Forward variables of the prefixes that were chosen."""
        self._prefix_N = self._prefix_NV[rows_N, tokens_N]
        blank_NF, label_NF, last_N = self._blank_NF[rows_N], self._label_NF[rows_N], self._last_N[rows_N]
        from_NF = torch.where((last_N == tokens_N)[:, None], blank_NF, torch.logaddexp(label_NF, blank_NF))
        inputs_NFV = self._inputs_BFV[self._utterance_N]
        frames = inputs_NFV.shape[1]
        own_NF = inputs_NFV.gather(2, tokens_N[:, None, None].expand(-1, frames, 1))[..., 0]
        self._label_NF = _recursion(from_NF, own_NF)
        self._blank_NF = _recursion(self._label_NF, inputs_NFV[..., self.blank])
        self._last_N = tokens_N

    def keep(self, rows_N: Tensor) -> None:
        """Keep only these rows."""
        self._utterance_N, self._last_N = self._utterance_N[rows_N], self._last_N[rows_N]
        self._blank_NF, self._label_NF = self._blank_NF[rows_N], self._label_NF[rows_N]
        self._prefix_N, self._prefix_NV = self._prefix_N[rows_N], self._prefix_NV[rows_N]


def _recursion(enters_NF: Tensor, inputs_NF: Tensor) -> Tensor:
    """``x[t] = logaddexp(x[t - 1], enters[t - 1]) + inputs[t]`` from nothing, by cumulative sums.

    ``enters_NF`` has a place before the first frame, and so has the result.
    """
    sums_NF = torch.cat([torch.zeros_like(inputs_NF[:, :1]), inputs_NF.cumsum(1)], dim=1)
    collected_NF = (enters_NF[:, :-1] - sums_NF[:, :-1]).logcumsumexp(1) + sums_NF[:, 1:]
    return torch.cat([torch.full_like(collected_NF[:, :1], _NEVER), collected_NF], dim=1).clamp(min=_NEVER)
