"""Beam search over an autoregressive decoder, batched over utterances and beams, with a cache.

The rules of ranking and of stopping are those of transformers' ``generate`` (5.23, ``early_stopping=False``): a text
that ends among the best ``beam_size`` continuations is finished, its score divided by its length to the power of
``length_penalty``; an utterance is done when ``beam_size`` texts are finished and the best unfinished one, at its
present length, is no better than the worst of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ssl_asr.decoding.seq2seq import Decoded, Rule, StepModel, Suppression, begun

_NEVER = -1e30


class Scorer(Protocol):
    """What is added to the decoder's log-probabilities; it holds the state of one search, a row for each beam."""

    def scores(self, log_probs_NV: Tensor, end_id: int) -> Tensor:
        """What every token would add, ``scores_NV``."""

    def select(self, rows_N: Tensor, tokens_N: Tensor) -> None:
        """Each beam is now that of another row, and a token longer; a token that ended its text means nothing."""

    def keep(self, rows_N: Tensor) -> None:
        """Keep only these rows."""


@dataclass(slots=True)
class _Texts:
    """The best texts of each utterance, running or finished: scores, and tokens from the first on."""

    scores_BK: Tensor
    tokens_BKU: Tensor

    @classmethod
    def none(cls, batch: int, beams: int, most: int, device: torch.device) -> "_Texts":
        return cls(
            torch.full((batch, beams), _NEVER, device=device),
            torch.zeros(batch, beams, most, dtype=torch.int64, device=device),
        )

    def rows(self, rows: Tensor) -> "_Texts":
        return _Texts(self.scores_BK[rows], self.tokens_BKU[rows])


def beam_search(
    model: StepModel,
    h_BFD: Tensor,
    context_lengths_B: Tensor,
    prompts: Sequence[Sequence[int]],
    *,
    end_id: int,
    suppression: Suppression,
    beam_size: int,
    length_penalty: float,
    n_best: int,
    decoder_weight: float = 1.0,
    scorers: Sequence[Scorer] = (),
    limits: Sequence[int] | None = None,
    rules: Sequence[Rule] = (),
) -> list[list[Decoded]]:
    """The best texts of each utterance, best first.

    What an utterance gets does not depend on those beside it, which leave the batch when they are done.

    Args:
        model: gives the logits.
        h_BFD, context_lengths_B: encoder states and how many of them count.
        prompts: of equal length, one an utterance.
        end_id: the token that ends a text.
        suppression: tokens that are out of the question.
        beam_size: texts kept.
        length_penalty: the power of the length that scores are divided by.
        n_best: texts returned, at most ``beam_size``.
        decoder_weight: of the decoder's log-probabilities; scorers weigh themselves.
        scorers: what is added.
        limits: the most tokens to choose for each row; None for the model's own limit.
        rules: change the logits by what was chosen so far.
    """
    device = h_BFD.device
    state, prompt_BU, limit_B = begun(model, h_BFD, context_lengths_B, prompts, limits)
    batch, most = len(limit_B), int(limit_B.max())
    limit_B = limit_B.to(device)
    forbidden = suppression.on(device)
    running = _Texts.none(batch, beam_size, most, device)
    running.scores_BK[:, 0] = 0.0
    finished = _Texts.none(batch, beam_size, most, device)
    lengths_BK = torch.ones(batch, beam_size, dtype=torch.int64, device=device)
    results: list[list[Decoded]] = [[] for _ in range(batch)]
    alive = list(range(batch))
    inputs_NU = prompt_BU
    for position in range(most):
        logits_NV = model.step(inputs_NU, state).float()
        if position == 0:
            state.spread(beam_size)
            logits_NV = logits_NV.repeat_interleave(beam_size, dim=0)
        for rule in rules:
            logits_NV = rule(logits_NV, running.tokens_BKU[..., :position].flatten(0, 1))
        best = _continuations(
            logits_NV, running.scores_BK, forbidden[: 2 if position == 0 else 1], decoder_weight, scorers, end_id
        )
        ended_BC = (best.tokens_BC == end_id) | (limit_B[:, None] <= position + 1)
        longer_BCU = running.tokens_BKU.gather(1, best.beams_BC[..., None].expand(-1, -1, most))
        longer_BCU[..., position] = best.tokens_BC
        lengths_BK = _finish(finished, lengths_BK, best.scores_BC, ended_BC, longer_BCU, position + 1, length_penalty)
        going = best.scores_BC.masked_fill(ended_BC, _NEVER).topk(beam_size, dim=1)
        running = _Texts(going.values, longer_BCU.gather(1, going.indices[..., None].expand(-1, -1, most)))
        hope_B = going.values[:, 0] / (position + 1) ** length_penalty
        done_B = (finished.scores_BK.amin(1) >= hope_B) | (limit_B <= position + 1)
        done = done_B.tolist()
        if any(done):
            _collect(results, alive, done, finished, lengths_BK, end_id, n_best)
            alive = [one for one, is_done in zip(alive, done, strict=True) if not is_done]
            if not alive:
                break
        parents_BK = best.beams_BC.gather(1, going.indices)
        tokens_BK = best.tokens_BC.gather(1, going.indices)
        rows_B1 = torch.arange(len(parents_BK), device=device)[:, None] * beam_size
        rows_N, tokens_N = (rows_B1 + parents_BK).flatten(), tokens_BK.flatten()
        state.select(rows_N)
        for scorer in scorers:
            scorer.select(rows_N, tokens_N)
        if any(done):
            left = (~done_B).nonzero()[:, 0]
            left_N = (left[:, None] * beam_size + torch.arange(beam_size, device=device)).flatten()
            state.keep(left)
            for scorer in scorers:
                scorer.keep(left_N)
            running, finished = running.rows(left), finished.rows(left)
            lengths_BK, limit_B, tokens_N = lengths_BK[left], limit_B[left], tokens_N[left_N]
        inputs_NU = tokens_N[:, None]
    return results


@dataclass(frozen=True, slots=True)
class _Best:
    """The best continuations of each utterance: scores, which beam each continues, and by which token."""

    scores_BC: Tensor
    beams_BC: Tensor
    tokens_BC: Tensor


def _continuations(
    logits_NV: Tensor,
    scores_BK: Tensor,
    forbidden: Sequence[Tensor],
    decoder_weight: float,
    scorers: Sequence[Scorer],
    end_id: int,
) -> _Best:
    """Twice as many as there are beams: if half of them end, there are still enough to go on with."""
    batch, beams = scores_BK.shape
    wanted = min(2 * beams, logits_NV.shape[1])
    if scorers:
        log_probs_NV = logits_NV.log_softmax(-1)
        total_NV = decoder_weight * log_probs_NV
        for scorer in scorers:
            total_NV = total_NV + scorer.scores(log_probs_NV, end_id)
        norm_N = torch.zeros_like(total_NV[:, 0])
    else:
        total_NV, norm_N = logits_NV, logits_NV.logsumexp(-1)
    for ids in forbidden:
        total_NV[:, ids] = -torch.inf
    each = total_NV.topk(wanted, dim=1)
    own_NC = (each.values - norm_N[:, None]) * (1.0 if scorers else decoder_weight)
    all_BN = (own_NC + scores_BK.flatten()[:, None]).clamp(min=_NEVER).view(batch, -1)
    best = all_BN.topk(min(2 * beams, all_BN.shape[1]), dim=1)
    tokens_BC = each.indices.view(batch, -1).gather(1, best.indices)
    return _Best(best.values, best.indices.div(wanted, rounding_mode="floor"), tokens_BC)


def _finish(
    finished: _Texts,
    lengths_BK: Tensor,
    scores_BC: Tensor,
    ended_BC: Tensor,
    longer_BCU: Tensor,
    length: int,
    length_penalty: float,
) -> Tensor:
    """Take in the texts that ended among the best, and give the lengths of all that are finished."""
    beams = finished.scores_BK.shape[1]
    among_C = torch.arange(scores_BC.shape[1], device=scores_BC.device) < beams
    new_BC = (scores_BC / length**length_penalty).masked_fill(~(ended_BC & among_C), _NEVER)
    new_BC = new_BC.masked_fill(scores_BC <= _NEVER / 2, _NEVER)
    best = torch.cat([finished.scores_BK, new_BC], dim=1).topk(beams, dim=1)
    tokens_BNU = torch.cat([finished.tokens_BKU, longer_BCU], dim=1)
    finished.scores_BK = best.values
    finished.tokens_BKU = tokens_BNU.gather(1, best.indices[..., None].expand(-1, -1, tokens_BNU.shape[-1]))
    all_lengths_BN = torch.cat([lengths_BK, torch.full_like(scores_BC, length, dtype=torch.int64)], dim=1)
    return all_lengths_BN.gather(1, best.indices)


def _collect(
    results: list[list[Decoded]],
    alive: list[int],
    done: list[bool],
    finished: _Texts,
    lengths_BK: Tensor,
    end_id: int,
    n_best: int,
) -> None:
    """Put down the texts of utterances that are done."""
    for row, (utterance, is_done) in enumerate(zip(alive, done, strict=True)):
        if not is_done:
            continue
        rows = zip(
            finished.scores_BK[row].tolist(), lengths_BK[row].tolist(), finished.tokens_BKU[row].tolist(), strict=True
        )
        for score, length, tokens in list(rows)[:n_best]:
            if score <= _NEVER / 2 and results[utterance]:
                break
            own = tokens[:length]
            results[utterance].append(Decoded(own[:-1] if own and own[-1] == end_id else own, score))
