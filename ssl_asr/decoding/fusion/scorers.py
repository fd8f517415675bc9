"""Automata as a `ssl_asr.decoding.step_model.Scorer` of an autoregressive beam search."""

import math

import torch
from torch import Tensor

from ssl_asr.decoding.fusion.tables import Fusion


class FusionScorer:
    """A `Fusion` as a `Scorer`.

    Args:
        fusion: Automata over the vocabulary of the decoder.
        rows: Number of beams of all utterances.
        candidates: Number of the most probable tokens of each beam that are scored. The end is always scored, and every
            other token is forbidden. None scores all tokens.
    """

    def __init__(self, fusion: Fusion, *, rows: int, candidates: int | None = None) -> None:
        self.fusion, self.candidates = fusion, candidates
        self._states_PN = fusion.begin(rows)
        # The tokens that were scored last, and the states after them.
        self._tokens_NC = torch.empty(rows, 0, dtype=torch.int64, device=fusion.device)
        self._nexts: list[Tensor] = []

    def scores(self, log_probs_NV: Tensor, end_id: int) -> Tensor:
        """Score of each token and of the end, ``scores_NV``."""
        size = log_probs_NV.shape[1]
        if self.candidates is None:
            # All rows have the same tokens.
            tokens_NC = torch.arange(size, device=log_probs_NV.device)[None]
        else:
            tokens_NC = log_probs_NV.topk(min(self.candidates, size), dim=1).indices
        scores_NC, nexts = self.fusion.extend(self._states_PN, tokens_NC)
        # A forbidden token has no next state: pruned and finished beams keep their state.
        allowed_NC = scores_NC > -math.inf
        pairs = zip(nexts, self._states_PN, strict=True)
        self._nexts = [torch.where(allowed_NC, nexts_NC, own_N[:, None]) for nexts_NC, own_N in pairs]
        self._tokens_NC = tokens_NC
        scores_NC = scores_NC.to(log_probs_NV.dtype)
        if self.candidates is None:
            scores_NV = scores_NC.clone()
        else:
            scores_NV = torch.full_like(log_probs_NV, -torch.inf).scatter_(1, tokens_NC, scores_NC)
        scores_NV[:, end_id] = self.fusion.ends(self._states_PN).to(log_probs_NV.dtype)
        return scores_NV

    def select(self, rows_N: Tensor, tokens_N: Tensor) -> None:
        """Move each beam to the state of its parent row and one token further."""
        if self.candidates is None:
            moved = [nexts_NV[rows_N, tokens_N] for nexts_NV in self._nexts]
        else:
            # Only the token of a pruned or finished beam is no candidate. Such a beam keeps the state of its parent.
            found = (self._tokens_NC[rows_N] == tokens_N[:, None]).max(dim=1)
            pairs = zip(self._nexts, self._states_PN, strict=True)
            moved = [
                torch.where(found.values, nexts_NC[rows_N, found.indices], own_N[rows_N]) for nexts_NC, own_N in pairs
            ]
        if moved:
            self._states_PN = torch.stack(moved)
        self.fusion.arrive(self._states_PN)

    def keep(self, rows_N: Tensor) -> None:
        """Keep only these rows."""
        self._states_PN = self._states_PN[:, rows_N]
