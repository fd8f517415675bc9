"""Beam search over an autoregressive decoder, batched over utterances and beams, with a cache.

Let ``y[1..n]`` be a hypothesis of an utterance, its end token included once it is finished::

    score(y[1..n]) = score(y[1..n-1]) + w * log p(y[n] | y[1..n-1]) + sum of the scorers' scores for y[n]
    final(y[1..n]) = score(y[1..n]) / n ** length_penalty

Each step extends the K running hypotheses of an utterance by one token:

1. Candidates: the 2K continuations with the best score. If K of them end, K are left to go on with.
2. Finish: a candidate that ends (end token, or n reaches the limit) is finished if it is among the K best candidates.
   The K finished hypotheses with the best final score are kept.
3. Continue: the K best candidates that do not end are the running hypotheses of the next step.
4. Stop: the utterance is done when K hypotheses are finished and the best running hypothesis, with final score at its
   present length, is not better than the worst of them, or when n reaches the limit.

Ranking and stopping follow transformers' ``generate`` (5.23, ``early_stopping=False``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_asr.decoding.finished import FinishedRows
from ssl_asr.decoding.step_model import Constraints, Decoded, DecoderState, Rule, Scorer, StepModel, start_search
from ssl_asr.types import on_device

# Score of a hypothesis that does not exist. Minus infinity would turn into NaN in sums.
_NEVER = -1e30


def beam_search(
    model: StepModel,
    h_BFD: Tensor,
    context_lengths_B: Tensor,
    prompts: Sequence[Sequence[int]],
    *,
    constraints: Constraints,
    beam_size: int,
    length_penalty: float,
    n_best: int,
    decoder_weight: float = 1.0,
    scorers: Sequence[Scorer] = (),
    check_every: int | None = None,
) -> list[list[Decoded]]:
    """The ``n_best`` finished hypotheses of each utterance, best first.

    Results are independent of the batch composition. Finished utterances are removed from the batch.

    Args:
        model: The decoder.
        h_BFD, context_lengths_B: Encoder states, and the number of valid states per utterance.
        prompts: Token ids, one list per utterance, of equal length.
        constraints: End token, suppressed tokens, limits and rules.
        beam_size: Number of hypotheses kept per utterance.
        length_penalty: Exponent of the length that scores are divided by.
        n_best: Number of hypotheses returned per utterance, at most ``beam_size``.
        decoder_weight: Weight of the decoder's log-probabilities.
        scorers: Their scores are added to the log-probabilities. They have weights of their own.
        check_every: Tokens between two checks for utterances that are done, see `FinishedRows`. It does not change
            results.
    """
    device = h_BFD.device
    start = start_search(model, h_BFD, context_lengths_B, prompts, constraints.limits)
    batch, longest = len(start.limit_B), int(start.limit_B.max())
    search = _Search(
        model=model,
        state=start.state,
        scorers=scorers,
        rules=constraints.rules,
        forbidden=constraints.suppression.on(device),
        end_id=constraints.end_id,
        decoder_weight=decoder_weight,
        length_penalty=length_penalty,
        running=_Hypotheses.initial(batch, beam_size, longest, device),
        finished=_Hypotheses.none(batch, beam_size, longest, device),
        limit_B=on_device(start.limit_B, device),
        results=_Hypotheses.none(batch, beam_size, longest, device),
        active=torch.arange(batch, device=device),
        done_B=torch.zeros(batch, dtype=torch.bool, device=device),
        watch=FinishedRows(device, share=1.0, every=check_every),
    )
    return search.run(start.prompt_BU, n_best)


@dataclass(slots=True)
class _Hypotheses:
    """K hypotheses of each utterance: scores (final scores once finished), tokens from the first on, and lengths."""

    scores_BK: Tensor
    tokens_BKU: Tensor
    lengths_BK: Tensor

    @classmethod
    def none(cls, batch: int, beams: int, longest: int, device: torch.device) -> "_Hypotheses":
        return cls(
            torch.full((batch, beams), _NEVER, device=device),
            torch.zeros(batch, beams, longest, dtype=torch.int64, device=device),
            torch.ones(batch, beams, dtype=torch.int64, device=device),
        )

    @classmethod
    def initial(cls, batch: int, beams: int, longest: int, device: torch.device) -> "_Hypotheses":
        """The empty hypothesis, once: K equal ones would lead to K equal continuations."""
        hypotheses = cls.none(batch, beams, longest, device)
        hypotheses.scores_BK[:, 0] = 0.0
        return hypotheses

    def keep(self, rows: Tensor) -> "_Hypotheses":
        return _Hypotheses(self.scores_BK[rows], self.tokens_BKU[rows], self.lengths_BK[rows])

    def put(self, rows: Tensor, other: "_Hypotheses") -> None:
        """Replace those of the utterances ``rows``."""
        self.scores_BK[rows], self.tokens_BKU[rows] = other.scores_BK, other.tokens_BKU
        self.lengths_BK[rows] = other.lengths_BK

    def decoded(self, end_id: int, n_best: int) -> list[list[Decoded]]:
        """The best of each utterance. At least one, even if no hypothesis was possible."""
        rows = zip(self.scores_BK.tolist(), self.lengths_BK.tolist(), self.tokens_BKU.tolist(), strict=True)
        return [_decoded(*row, end_id=end_id, n_best=n_best) for row in rows]


def _decoded(
    scores: list[float], lengths: list[int], texts: list[list[int]], *, end_id: int, n_best: int
) -> list[Decoded]:
    found: list[Decoded] = []
    for score, length, tokens in zip(scores, lengths, texts, strict=True):
        if len(found) == n_best or (score <= _NEVER / 2 and found):
            break
        own = tokens[:length]
        found.append(Decoded(own[:-1] if own and own[-1] == end_id else own, score))
    return found


@dataclass(frozen=True, slots=True)
class _Candidates:
    """The 2K best continuations of each utterance: score, beam that is continued, token, and whether it ends."""

    scores_BC: Tensor
    beams_BC: Tensor
    tokens_BC: Tensor
    ended_BC: Tensor


@dataclass(slots=True, kw_only=True)
class _Search:
    """The state of one search over the utterances in the batch.

    Attributes:
        results: Finished hypotheses of all utterances. Up to date after `_store`.
        active: Places in ``results`` of the utterances in the batch.
        done_B: Whether each utterance in the batch is done. Its finished hypotheses do not change any more.
        watch: Finds the utterances that leave the batch.
    """

    model: StepModel
    state: DecoderState
    scorers: Sequence[Scorer]
    rules: Sequence[Rule]
    forbidden: tuple[Tensor, Tensor]
    end_id: int
    decoder_weight: float
    length_penalty: float
    running: _Hypotheses
    finished: _Hypotheses
    limit_B: Tensor
    results: _Hypotheses
    active: Tensor
    done_B: Tensor
    watch: FinishedRows

    def run(self, prompt_BU: Tensor, n_best: int) -> list[list[Decoded]]:
        """The search, step by step as in the module's docstring."""
        longest = self.running.tokens_BKU.shape[-1]
        inputs_NU = prompt_BU
        for length in range(1, longest + 1):
            best = self._candidates(self._logits(inputs_NU, length - 1), length)
            # The tokens of every candidate: the tokens of the beam it continues, and its own token.
            tokens_BCU = self.running.tokens_BKU.gather(1, best.beams_BC[..., None].expand(-1, -1, longest))
            tokens_BCU[..., length - 1] = best.tokens_BC
            self._finish(best, tokens_BCU, length)
            chosen_BK = self._continue(best, tokens_BCU)
            self.done_B = self.done_B | self._done(length)
            # Utterances that are done stay in the batch until a check finds them. `_finish` leaves them as they are.
            left = self.watch.left(self.done_B)
            if left == []:
                break
            tokens_N = self._reorder(best.beams_BC.gather(1, chosen_BK), best.tokens_BC.gather(1, chosen_BK))
            if left is not None:
                tokens_N = tokens_N[self._keep(left)]
            inputs_NU = tokens_N[:, None]
        self._store()
        return self.results.decoded(self.end_id, n_best)

    def _logits(self, inputs_NU: Tensor, position: int) -> Tensor:
        """Logits of the next token of every running hypothesis, after the rules."""
        logits_NV = self.model.step(inputs_NU, self.state).float()
        if position == 0:
            # The prompt is read once per utterance, not once per beam.
            beams = self.running.scores_BK.shape[1]
            self.state.spread(beams)
            logits_NV = logits_NV.repeat_interleave(beams, dim=0)
        for rule in self.rules:
            logits_NV = rule(logits_NV, self.running.tokens_BKU[..., :position].flatten(0, 1))
        return logits_NV

    def _candidates(self, logits_NV: Tensor, length: int) -> _Candidates:
        """Step 1: the best of each beam first, then the best of all beams of the utterance."""
        batch, beams = self.running.scores_BK.shape
        wanted = min(2 * beams, logits_NV.shape[1])
        if self.scorers:
            log_probs_NV = logits_NV.log_softmax(-1)
            total_NV = self.decoder_weight * log_probs_NV
            for scorer in self.scorers:
                total_NV = total_NV + scorer.scores(log_probs_NV, self.end_id)
            norm_N, weight = torch.zeros_like(total_NV[:, 0]), 1.0
        else:
            # The normalizer of a row is subtracted after the best tokens are picked: it does not change their order.
            total_NV, norm_N, weight = logits_NV, logits_NV.logsumexp(-1), self.decoder_weight
        for ids in self.forbidden[: 2 if length == 1 else 1]:
            total_NV[:, ids] = -torch.inf
        # No beam can have more than 2K of the best 2K continuations.
        each = total_NV.topk(wanted, dim=1)
        own_NC = (each.values - norm_N[:, None]) * weight
        all_BN = (own_NC + self.running.scores_BK.flatten()[:, None]).clamp(min=_NEVER).view(batch, -1)
        best = all_BN.topk(min(2 * beams, all_BN.shape[1]), dim=1)
        tokens_BC = each.indices.view(batch, -1).gather(1, best.indices)
        ended_BC = (tokens_BC == self.end_id) | (self.limit_B[:, None] <= length)
        return _Candidates(best.values, best.indices.div(wanted, rounding_mode="floor"), tokens_BC, ended_BC)

    def _finish(self, best: _Candidates, tokens_BCU: Tensor, length: int) -> None:
        """Step 2: merge the candidates that end into the finished hypotheses."""
        finished, beams = self.finished, self.finished.scores_BK.shape[1]
        among_C = torch.arange(best.scores_BC.shape[1], device=best.scores_BC.device) < beams
        new_BC = (best.scores_BC / length**self.length_penalty).masked_fill(~(best.ended_BC & among_C), _NEVER)
        # The length penalty would make an impossible score look better.
        new_BC = new_BC.masked_fill(best.scores_BC <= _NEVER / 2, _NEVER)
        scores_BN = torch.cat([finished.scores_BK, new_BC], dim=1)
        # An utterance that is done keeps what it has.
        own_K = torch.arange(beams, device=scores_BN.device)
        kept_BK = torch.where(self.done_B[:, None], own_K, scores_BN.topk(beams, dim=1).indices)
        tokens_BNU = torch.cat([finished.tokens_BKU, tokens_BCU], dim=1)
        lengths_BN = torch.cat([finished.lengths_BK, torch.full_like(new_BC, length, dtype=torch.int64)], dim=1)
        tokens_BKU = tokens_BNU.gather(1, kept_BK[..., None].expand(-1, -1, tokens_BNU.shape[-1]))
        self.finished = _Hypotheses(scores_BN.gather(1, kept_BK), tokens_BKU, lengths_BN.gather(1, kept_BK))

    def _continue(self, best: _Candidates, tokens_BCU: Tensor) -> Tensor:
        """Step 3. Returns the indices of the candidates that go on, ``(B, K)``."""
        running = self.running
        # At least K of the 2K candidates go on, unless n has reached the limit or the vocabulary is tiny.
        going = best.scores_BC.masked_fill(best.ended_BC, _NEVER).topk(running.scores_BK.shape[1], dim=1)
        tokens_BKU = tokens_BCU.gather(1, going.indices[..., None].expand(-1, -1, tokens_BCU.shape[-1]))
        self.running = _Hypotheses(going.values, tokens_BKU, running.lengths_BK)
        return going.indices

    def _done(self, length: int) -> Tensor:
        """Step 4: whether each utterance is done."""
        hope_B = self.running.scores_BK[:, 0] / length**self.length_penalty
        done_B: Tensor = (self.finished.scores_BK.amin(1) >= hope_B) | (self.limit_B <= length)
        return done_B

    def _reorder(self, parents_BK: Tensor, tokens_BK: Tensor) -> Tensor:
        """Move the cache and the scorers to the parents of the running hypotheses. Returns their last tokens."""
        batch, beams = parents_BK.shape
        rows_B1 = torch.arange(batch, device=parents_BK.device)[:, None] * beams
        rows_N, tokens_N = (rows_B1 + parents_BK).flatten(), tokens_BK.flatten()
        self.state.select(rows_N)
        for scorer in self.scorers:
            scorer.select(rows_N, tokens_N)
        return tokens_N

    def _store(self) -> None:
        """Copy the finished hypotheses of the batch to the results."""
        self.results.put(self.active, self.finished)

    def _keep(self, left: list[int]) -> Tensor:
        """Remove all utterances but ``left`` from the batch. Returns the rows of their beams."""
        self._store()
        beams, rows = self.running.scores_BK.shape[1], self.watch.keep(left)
        rows_N = (rows[:, None] * beams + torch.arange(beams, device=rows.device)).flatten()
        self.state.keep(rows)
        for scorer in self.scorers:
            scorer.keep(rows_N)
        self.running, self.finished = self.running.keep(rows), self.finished.keep(rows)
        self.limit_B, self.active, self.done_B = self.limit_B[rows], self.active[rows], self.done_B[rows]
        return rows_N
