"""Automata as a `ssl_asr.decoding.step_model.Scorer` of an autoregressive beam search.

`FusionScorer` scores the whole vocabulary from tables. `CandidateScorer` scores only the most likely tokens of each
beam, for vocabularies that are too large for tables (50,000 tokens for Whisper).
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_asr.decoding.arpa import Float64s
from ssl_asr.decoding.fusion.automata import Automaton
from ssl_asr.decoding.fusion.tables import Fusion


class FusionScorer:
    """A `Fusion` as a `Scorer`.

    Args:
        fusion: Tables over the vocabulary of the decoder.
        rows: Number of beams of all utterances.
    """

    def __init__(self, fusion: Fusion, *, rows: int) -> None:
        self.fusion = fusion
        self._states_PN = fusion.begin(rows)
        self._nexts: list[Tensor] = []

    def scores(self, log_probs_NV: Tensor, end_id: int) -> Tensor:
        """Score of each token and of the end, ``scores_NV``."""
        labels_XC = torch.arange(log_probs_NV.shape[1], device=log_probs_NV.device)[None]
        scores_NV, nexts = self.fusion.extend(self._states_PN, labels_XC)
        # A forbidden token has no next state: pruned and finished beams keep their state.
        allowed_NV = scores_NV > -math.inf
        pairs = zip(nexts, self._states_PN, strict=True)
        self._nexts = [torch.where(allowed_NV, nexts_NV, own_N[:, None]) for nexts_NV, own_N in pairs]
        scores_NV = scores_NV.clone()
        scores_NV[:, end_id] = self.fusion.ends(self._states_PN)
        return scores_NV.to(log_probs_NV.dtype)

    def select(self, rows_N: Tensor, tokens_N: Tensor) -> None:
        """Move each beam to the state of its parent row and one token further."""
        if self._nexts:
            self._states_PN = torch.stack([nexts_NV[rows_N, tokens_N] for nexts_NV in self._nexts])
        self.fusion.arrive(self._states_PN)

    def keep(self, rows_N: Tensor) -> None:
        """Keep only these rows."""
        self._states_PN = self._states_PN[:, rows_N]


class CandidateScorer:
    """Automata as a `Scorer` of the most likely tokens of each beam.

    Args:
        parts: Automata over all tokens, spelled as text. Tokens without text are spelled ``""``.
        rows: Number of beams of all utterances.
        candidates: Number of the most likely tokens that are scored. The end is always scored, every other token is
            forbidden.
    """

    def __init__(self, parts: Sequence[Automaton[Any]], *, rows: int, candidates: int) -> None:
        self.parts, self.candidates = list(parts), candidates
        self._keys: list[tuple[Hashable, ...]] = [tuple(part.begin for part in parts)] * rows
        # Rows with equal keys and candidates, which are frequent among the beams of a step.
        self._cache: dict[tuple[tuple[Hashable, ...], tuple[int, ...]], Float64s] = {}

    def scores(self, log_probs_NV: Tensor, end_id: int) -> Tensor:
        """Scores of the candidates and of the end, minus infinity for every other token, ``scores_NV``."""
        for place, part in enumerate(self.parts):
            part.prefetch([key[place] for key in self._keys])
        tokens_NC = log_probs_NV.topk(min(self.candidates, log_probs_NV.shape[1]), dim=1).indices
        rows = [self._row(key, tuple(tokens)) for key, tokens in zip(self._keys, tokens_NC.tolist(), strict=True)]
        scores_NC = torch.from_numpy(np.stack(rows)).to(log_probs_NV.device, log_probs_NV.dtype)
        scores_NV = torch.full_like(log_probs_NV, -torch.inf).scatter_(1, tokens_NC, scores_NC)
        ends = [sum(part.end(own) for part, own in zip(self.parts, key, strict=True)) for key in self._keys]
        scores_NV[:, end_id] = torch.tensor(ends, device=log_probs_NV.device, dtype=log_probs_NV.dtype)
        return scores_NV

    def _row(self, key: tuple[Hashable, ...], labels: tuple[int, ...]) -> Float64s:
        found = self._cache.get((key, labels))
        if found is None:
            parts = zip(self.parts, key, strict=True)
            total_C = sum(part.scores(own, labels) for part, own in parts)
            # -inf - (-inf) is NaN; restore -inf.
            found = np.nan_to_num(total_C, nan=-math.inf, neginf=-math.inf)
            self._cache[key, labels] = found
        return found

    def select(self, rows_N: Tensor, tokens_N: Tensor) -> None:
        """Move each beam to the keys of its parent row and one token further."""
        self._cache.clear()
        chosen = zip(rows_N.tolist(), tokens_N.tolist(), strict=True)
        self._keys = [
            tuple(part.advance(key, token) for part, key in zip(self.parts, self._keys[row], strict=True))
            for row, token in chosen
        ]

    def keep(self, rows_N: Tensor) -> None:
        """Keep only these rows."""
        self._keys = [self._keys[row] for row in rows_N.tolist()]
