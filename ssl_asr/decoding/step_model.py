"""The parts that greedy search and beam search over an autoregressive decoder share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ssl_asr.types import on_device


class DecoderState(Protocol):
    """The cache of an autoregressive decoder. Rows are utterances, or after `spread` beams of utterances."""

    def spread(self, beams: int) -> None:
        """Make ``beams`` equal beams of each utterance."""

    def select(self, rows: Tensor) -> None:
        """Replace each beam with the beam in row ``rows`` of the same utterance (int64 indices of the whole batch)."""

    def keep(self, rows: Tensor) -> None:
        """Keep only the utterances ``rows`` (int64, on the device), with all their beams."""


class StepModel(Protocol):
    """An autoregressive decoder that reads one token at a time (see `ssl_asr.models.transformer`)."""

    @property
    def max_tokens(self) -> int:
        """Longest text in tokens, the prompt included."""

    def begin(self, h_BFD: Tensor, context_lengths_B: Tensor, max_tokens: int) -> DecoderState:
        """An empty cache over encoder states, with room for ``max_tokens`` tokens per utterance."""

    # Each decoder accepts only the cache that its own `begin` returns, which a protocol cannot express.
    def step(self, tokens_BU: Tensor, state: Any) -> Tensor:
        """Feed the next tokens. Returns the logits after the last token, ``logits_BV``."""


class Rule(Protocol):
    """Changes logits depending on the tokens chosen so far."""

    def __call__(self, logits_BV: Tensor, history_BU: Tensor) -> Tensor:
        """The logits of the next token, changed in place or copied. ``history_BU`` does not hold the prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AtLeast:
    """A `Rule`: the end token is forbidden before ``tokens`` tokens."""

    tokens: int
    end_id: int

    def __call__(self, logits_BV: Tensor, history_BU: Tensor) -> Tensor:
        """The logits, with the end token at minus infinity if the text is too short."""
        if history_BU.shape[1] < self.tokens:
            logits_BV[:, self.end_id] = -torch.inf
        return logits_BV


@dataclass(frozen=True, slots=True, kw_only=True)
class Suppression:
    """Ids of tokens that are never chosen (``always``), or not as the first token (``first``)."""

    always: tuple[int, ...] = ()
    first: tuple[int, ...] = ()

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """``always`` and ``first`` as int64 tensors on a device."""
        always, first = (on_device(torch.tensor(ids, dtype=torch.int64), device) for ids in (self.always, self.first))
        return always, first


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """Restricts the tokens of a search.

    Attributes:
        end_id: Id of the end token.
        suppression: Tokens that are never chosen.
        limits: Maximum number of tokens per utterance. None for the limit of the model.
        rules: Change the logits depending on the tokens so far.
    """

    end_id: int
    suppression: Suppression = Suppression()
    limits: Sequence[int] | None = None
    rules: Sequence[Rule] = ()


class Scorer(Protocol):
    """Adds scores to the log-probabilities of a decoder, in beam search. It holds one state for each beam."""

    def scores(self, log_probs_NV: Tensor, end_id: int) -> Tensor:
        """The score to add for each token, shape (beams of all utterances, vocabulary)."""

    def select(self, rows_N: Tensor, tokens_N: Tensor) -> None:
        """Replace each beam with the beam in row ``rows_N``, extended by ``tokens_N``.

        The token of a beam that has ended is arbitrary.
        """

    def keep(self, rows_N: Tensor) -> None:
        """Keep only the beams ``rows_N``."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """Tokens after the prompt, without the end token, and their score.

    Greedy search gives the mean log-probability of a token, beam search the score it ranks by.
    """

    tokens: list[int]
    score: float


@dataclass(frozen=True, slots=True)
class Start:
    """Where a search starts: an empty cache, the prompts on the device, and limits in tokens on the CPU."""

    state: DecoderState
    prompt_BU: Tensor
    limit_B: Tensor


def start_search(
    model: StepModel,
    h_BFD: Tensor,
    context_lengths_B: Tensor,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int] | None,
) -> Start:
    """Makes the cache of a search, with room for the longest text that the limits allow.

    Args:
        model: The decoder.
        h_BFD, context_lengths_B: Encoder states, and the number of valid states per utterance.
        prompts: Token ids, one list per utterance, of equal length.
        limits: Maximum number of tokens after the prompt, per utterance. None for the limit of the model.
    """
    prompt_BU = on_device(torch.tensor(prompts), h_BFD.device)
    batch, prompt_length = prompt_BU.shape
    room = model.max_tokens - prompt_length
    limit_B = torch.tensor([room] * batch if limits is None else [min(room, limit) for limit in limits])
    state = model.begin(h_BFD, context_lengths_B, prompt_length + int(limit_B.max()))
    return Start(state, prompt_BU, limit_B)
