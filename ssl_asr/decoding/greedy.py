"""Greedy search and sampling over an autoregressive decoder, batched, with a cache.

Let ``y[1..n]`` be the tokens that an utterance has after its prompt. The next token is::

    logits = rules(suppress(model(prompt, y[1..n])))
    y[n+1] = argmax(logits)                                temperature = 0
             a sample from softmax(logits / temperature)   temperature > 0

    score  = mean of log_softmax(logits)[y[i]] over all chosen tokens, the end token included

An utterance is finished when ``y[n+1]`` is the end token or ``n + 1`` reaches the limit. Finished utterances are
removed from the batch, so that one long utterance does not slow down the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_asr.decoding.finished import FinishedRows
from ssl_asr.decoding.step_model import Constraints, Decoded, StepModel, start_search
from ssl_asr.types import on_device

# The batch shrinks on a CPU when at most this share of it is left.
_SHRINK_AT = 0.75


def greedy_decode(
    model: StepModel,
    h_BFD: Tensor,
    context_lengths_B: Tensor,
    prompts: Sequence[Sequence[int]],
    *,
    constraints: Constraints,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    check_every: int | None = None,
) -> list[Decoded]:
    """Decodes all utterances of a batch at once. Results are independent of the batch composition.

    Args:
        model: The decoder.
        h_BFD, context_lengths_B: Encoder states, and the number of valid states per utterance.
        prompts: Token ids, one list per utterance, of equal length.
        constraints: End token, suppressed tokens, limits and rules.
        temperature: Divides the logits before sampling. 0 for the most probable token.
        generator: Random generator for sampling, on the device. None for torch's default.
        check_every: Tokens between two checks for finished utterances, see `FinishedRows`. It does not change results.
    """
    start = start_search(model, h_BFD, context_lengths_B, prompts, constraints.limits)
    device, state, inputs_BU = h_BFD.device, start.state, start.prompt_BU
    always, first = constraints.suppression.on(device)
    end_id = constraints.end_id
    texts = _Texts.empty(len(inputs_BU), int(start.limit_B.max()), end_id, device)
    # Rows of `texts` that are still in the batch, with their limits, and whether each is finished.
    active, limit_B = torch.arange(len(inputs_BU), device=device), on_device(start.limit_B, device)
    ended = torch.zeros(len(inputs_BU), dtype=torch.bool, device=device)
    watch = FinishedRows(device, share=_SHRINK_AT, every=check_every)
    for position in range(texts.tokens_BU.shape[1]):
        logits_BV = _suppressed(model.step(inputs_BU, state), always, first if position == 0 else None)
        for rule in constraints.rules:
            logits_BV = rule(logits_BV, texts.tokens_BU[active, :position])
        tokens_B, log_probs_B = _choose(logits_BV, temperature, generator)
        texts.append(position, active, tokens_B, log_probs_B, ~ended)
        ended = ended | (tokens_B == end_id) | (limit_B[active] <= position + 1)
        inputs_BU = tokens_B[:, None]
        # Finished rows stay in the batch until a check finds enough of them. `ended` keeps their texts as they are.
        left = watch.left(ended)
        if left is None:
            continue
        if not left:
            break
        rows = watch.keep(left)
        state.keep(rows)
        active, ended, inputs_BU = active[rows], ended[rows], inputs_BU[rows]
    return texts.decoded(start.limit_B.tolist())


def _suppressed(logits_BV: Tensor, always: Tensor, first: Tensor | None) -> Tensor:
    logits_BV = logits_BV.float()
    logits_BV[:, always] = -torch.inf
    if first is not None:
        logits_BV[:, first] = -torch.inf
    return logits_BV


def _choose(logits_BV: Tensor, temperature: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """The next token of each utterance, and its log-probability before the temperature."""
    log_probs_BV = logits_BV.log_softmax(-1)
    if temperature > 0:
        sampled_B1 = (logits_BV / temperature).softmax(-1).multinomial(1, generator=generator)
        return sampled_B1[:, 0], log_probs_BV.gather(1, sampled_B1)[:, 0]
    best = log_probs_BV.max(dim=-1)
    return best.indices, best.values


@dataclass(frozen=True, slots=True)
class _Texts:
    """Tokens chosen so far, filled up with the end token, and the sum and number of their log-probabilities."""

    tokens_BU: Tensor
    total_B: Tensor
    count_B: Tensor
    end_id: int

    @classmethod
    def empty(cls, batch: int, longest: int, end_id: int, device: torch.device) -> "_Texts":
        return cls(
            torch.full((batch, longest), end_id, dtype=torch.int64, device=device),
            torch.zeros(batch, dtype=torch.float32, device=device),
            torch.zeros(batch, dtype=torch.int64, device=device),
            end_id,
        )

    def append(self, position: int, active: Tensor, tokens_B: Tensor, log_probs_B: Tensor, running: Tensor) -> None:
        """Add one token to the rows ``active``, unless they are finished."""
        self.tokens_BU[active, position] = torch.where(running, tokens_B, self.end_id)
        self.total_B[active] += log_probs_B * running
        self.count_B[active] += running

    def decoded(self, limits: Sequence[int]) -> list[Decoded]:
        """Each text up to its end token or its limit, with its mean log-probability."""
        means = (self.total_B / self.count_B.clamp(min=1)).tolist()
        found = []
        for row, mean, limit in zip(self.tokens_BU.tolist(), means, limits, strict=True):
            # A batch with a longer limit goes on writing end tokens after this utterance's own limit.
            own = row[:limit]
            found.append(Decoded(own[: own.index(self.end_id)] if self.end_id in own else own, mean))
        return found
