"""The scorer of the most probable tokens in plain Python: it asks the automata for each candidate of each beam."""

import math

import torch

from ssl_asr.decoding.seq2seq import WhisperBeam


class HostScorer:
    """A `Scorer` that keeps the keys of the automata of each beam."""

    def __init__(self, parts, *, rows, candidates):
        self.parts, self.candidates = parts, candidates
        self.keys = [[part.begin for part in parts] for _ in range(rows)]

    def scores(self, log_probs_NV, end_id):
        scores_NV = torch.full_like(log_probs_NV, -math.inf)
        tokens_NC = log_probs_NV.topk(min(self.candidates, log_probs_NV.shape[1]), dim=1).indices
        for row, (keys, tokens) in enumerate(zip(self.keys, tokens_NC.tolist(), strict=True)):
            own = list(zip(self.parts, keys, strict=True))
            for token in tokens:
                scores_NV[row, token] = _total(float(part.scores(key, [token])[0]) for part, key in own)
            scores_NV[row, end_id] = _total(part.end(key) for part, key in own)
        return scores_NV

    def select(self, rows_N, tokens_N):
        pairs = zip(rows_N.tolist(), tokens_N.tolist(), strict=True)
        self.keys = [
            [part.advance(key, token) for part, key in zip(self.parts, self.keys[row], strict=True)]
            for row, token in pairs
        ]

    def keep(self, rows_N):
        self.keys = [self.keys[row] for row in rows_N.tolist()]


def _total(scores):
    total = sum(scores)
    # After a forbidden label, which only pruned beams have, -inf - (-inf) is NaN.
    return -math.inf if math.isnan(total) else total


def score_on_the_host(monkeypatch, parts):
    """Let Whisper's beam search score its candidates by these automata on the host."""

    def scorers(self, fusion, utterances):
        return [HostScorer(parts, rows=utterances * self.beam_size, candidates=self.max_labels)]

    monkeypatch.setattr(WhisperBeam, "scorers", scorers)
