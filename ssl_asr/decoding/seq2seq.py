"""The decoders of autoregressive models, and greedy search, batched, with a cache."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ssl_asr.decoding.language_models import FusionOptions, Rescoring
from ssl_asr.types import Utterance

# On a GPU, asking whether all have ended waits for the device, so it is asked only every so many tokens.
_GPU_CHECK_EVERY = 8


@dataclass(frozen=True, kw_only=True)
class WhisperGreedy:
    """The ``whisper_greedy`` decoder.

    Attributes:
        suppress: apply the checkpoint's suppression lists, as its zero-shot figures were made with.
        max_tokens_per_s: a cap on tokens an utterance by its length (with 8 more), which ends run-away text
            early; null leaves the model's own limit.
        timestamps: have the text in phrases with times; only for models that have not unlearnt them.
        temperatures: what to try in turn while a text fails the two tests that follow; above 0 tokens are drawn, by
            the run's seed.
        max_compression: a text that zlib makes so many times smaller repeats itself and fails; null for no test.
        min_log_prob: a text whose mean log-probability a token is lower fails; null for no test.
        no_speech: where silence is likelier than this, a text that fails by its probability is taken for none; null
            for no test.
        prompt: what was said before, as far as the model is to know, or words in a style to follow; an utterance's
            own ``prompt`` in the manifest takes its place. It is read, and not written.
        min_tokens, max_tokens: of a text; null for no bound but the model's.
    """

    suppress: bool
    max_tokens_per_s: float | None
    timestamps: bool = False
    temperatures: list[float] = field(default_factory=lambda: [0.0])
    max_compression: float | None = None
    min_log_prob: float | None = None
    no_speech: float | None = None
    prompt: str | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class AttentionGreedy:
    """The ``attention_greedy`` decoder of joint models.

    Attributes:
        max_tokens_per_s: a cap on tokens an utterance by its length (with 8 more); null caps them by its
            frames only.
    """

    max_tokens_per_s: float | None


@dataclass(frozen=True, kw_only=True)
class WhisperBeam(Rescoring):
    """The ``whisper_beam`` decoder; a second look adds to log-probabilities before they are divided by the length.

    Attributes:
        suppress, max_tokens_per_s, timestamps, prompt, min_tokens, max_tokens: see `WhisperGreedy`.
        beam_size: texts kept.
        length_penalty: the power of the length that scores are divided by; 0 ranks by probability alone.
        n_best: texts given for each utterance.
        max_labels: language models and hotwords are asked about so many of a beam's likeliest tokens.
        lm: a language model (see `FusionOptions`).
        lm_unit: ``word``: it reads words in lower case without punctuation; ``label``: it is a causal model over
            Whisper's own tokens (GPT-2's, for the English checkpoints).
        lm_weight, word_score, unknown_score: see `FusionOptions`.
        hotwords, hotword_score: see `FusionOptions`; case and punctuation do not matter.
    """

    suppress: bool
    max_tokens_per_s: float | None
    beam_size: int
    length_penalty: float
    n_best: int
    timestamps: bool = False
    max_labels: int = 20
    lm: str | None = None
    lm_unit: Literal["word", "label"] = "word"
    lm_weight: float = 0.1
    word_score: float = 0.0
    unknown_score: float | None = -1.0
    hotwords: list[str] = field(default_factory=list)
    hotword_score: float = 0.3
    prompt: str | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None

    def fusion(self) -> FusionOptions:
        """The part of the settings that other searches have as well."""
        own = {one.name: getattr(self, one.name) for one in fields(FusionOptions) if hasattr(self, one.name)}
        hotwords = [fold(phrase) for phrase in self.hotwords]
        return FusionOptions(**(own | {"label_score": 0.0, "lexicon": None, "hotwords": hotwords}))


def fold(text: str) -> str:
    """Text in lower case without punctuation, apostrophes kept, as language models have words.

    Example:
        >>> fold(" Don't, Anna!")
        " don't anna"
    """
    return "".join(character for character in text.lower() if character.isalnum() or character in " '")


@dataclass(frozen=True, kw_only=True)
class AttentionBeam(FusionOptions):
    """The ``attention_beam`` decoder of joint models: the attention decoder, CTC and what `FusionOptions` adds.

    Attributes:
        max_tokens_per_s: see `AttentionGreedy`.
        beam_size, length_penalty, n_best: see `WhisperBeam`.
        ctc_weight: CTC's share of the model's score, the decoder's being the rest; 0 leaves CTC out.
        max_labels: CTC looks at so many of the decoder's likeliest labels; null looks at all.
        coverage_weight: added for each frame that the text has accounted for (see `ssl_asr.decoding.coverage`).
        coverage_threshold: how much attention in all accounts for a frame.
    """

    max_tokens_per_s: float | None
    beam_size: int
    length_penalty: float
    n_best: int
    ctc_weight: float
    max_labels: int | None
    coverage_weight: float = 0.0
    coverage_threshold: float = 0.5


def beams_of(options: WhisperBeam | AttentionBeam) -> dict[str, Any]:
    """What `ssl_asr.decoding.beam.beam_search` is told of the beam."""
    return {
        "beam_size": options.beam_size,
        "length_penalty": options.length_penalty,
        "n_best": options.searched(options.n_best),
    }


def ranking_of(options: WhisperBeam | AttentionBeam) -> dict[str, Any]:
    """How texts that were found become hypotheses."""
    return {"n_best": options.n_best, "length_penalty": options.length_penalty}


def fails(text: str, score: float, options: WhisperGreedy) -> bool:
    """Whether a text looks like one that was not heard: it repeats itself, or its tokens were unlikely."""
    raw = text.encode()
    repeats = options.max_compression is not None and len(raw) > options.max_compression * len(zlib.compress(raw))
    return repeats or (options.min_log_prob is not None and score < options.min_log_prob)


def token_limits(
    max_tokens_per_s: float | None, utterances: Sequence[Utterance], max_tokens: int | None = None
) -> list[int] | None:
    """The most tokens each utterance may come to; None where nothing is said."""
    if max_tokens_per_s is None:
        return None if max_tokens is None else [max_tokens] * len(utterances)
    by_length = [8 + int(max_tokens_per_s * utterance.duration) for utterance in utterances]
    return by_length if max_tokens is None else [min(max_tokens, limit) for limit in by_length]


@dataclass(frozen=True, slots=True)
class AtLeast:
    """A rule: no text ends before so many tokens."""

    tokens: int
    end_id: int

    def __call__(self, logits_BV: Tensor, history_BU: Tensor) -> Tensor:
        """Logits with the end forbidden while it comes too soon."""
        if history_BU.shape[1] < self.tokens:
            logits_BV[:, self.end_id] = -torch.inf
        return logits_BV


class Rule(Protocol):
    """Changes logits by what was chosen so far."""

    def __call__(self, logits_BV: Tensor, history_BU: Tensor) -> Tensor:
        """The logits of the next token, changed in place or anew; ``history_BU`` has no prompt."""


class StepModel(Protocol):
    """What greedy search asks of a model (see `WhisperSeq2Seq`)."""

    max_tokens: int

    def begin(self, h_BFD: Tensor, context_lengths_B: Tensor, max_tokens: int) -> Any:
        """An empty cache."""

    def step(self, tokens_BU: Tensor, state: Any) -> Tensor:
        """Logits after the last token, ``logits_BV``."""


@dataclass(frozen=True, slots=True)
class Suppression:
    """Tokens that may never be chosen, and those that may not come first."""

    always: tuple[int, ...] = ()
    first: tuple[int, ...] = ()

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Both, on a device."""
        always, first = (torch.tensor(ids, dtype=torch.int64, device=device) for ids in (self.always, self.first))
        return always, first


@dataclass(frozen=True, slots=True)
class Decoded:
    """Tokens chosen after the prompt, the end token left out, and their mean log-probability."""

    tokens: list[int]
    score: float


def begun(
    model: StepModel,
    h_BFD: Tensor,
    context_lengths_B: Tensor,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int] | None,
) -> tuple[Any, Tensor, Tensor]:
    """What a search starts from.

    Returns:
        state: an empty cache, as long as the longest text may get.
        prompt_BU: the prompts, on the device of the states.
        limit_B: the most tokens to choose for each, on the CPU.
    """
    prompt_BU = torch.tensor(prompts, device=h_BFD.device)
    batch, prompt_length = prompt_BU.shape
    room = model.max_tokens - prompt_length
    limit_B = torch.tensor([room] * batch if limits is None else [min(room, limit) for limit in limits])
    state = model.begin(h_BFD, context_lengths_B, prompt_length + int(limit_B.max()))
    return state, prompt_BU, limit_B


def greedy(
    model: StepModel,
    h_BFD: Tensor,
    context_lengths_B: Tensor,
    prompts: Sequence[Sequence[int]],
    *,
    end_id: int,
    suppression: Suppression,
    limits: Sequence[int] | None = None,
    rules: Sequence[Rule] = (),
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[Decoded]:
    """The likeliest token at each step, or one drawn, for every utterance of a batch at once.

    Rows that have ended leave the batch, so one long utterance does not cost the others. What a row gets
    does not depend on the rows beside it.

    Args:
        model: gives the logits.
        h_BFD, context_lengths_B: encoder states and how many of them count.
        prompts: of equal length, one an utterance.
        end_id: the token that ends a row.
        suppression: tokens that are out of the question.
        limits: the most tokens to choose for each row; None for the model's own limit.
        rules: change the logits by what was chosen so far.
        temperature: what logits are divided by before a token is drawn; 0 takes the likeliest.
        generator: what draws, on the device; None for torch's own.
    """
    device = h_BFD.device
    state, prompt_BU, limit_B = begun(model, h_BFD, context_lengths_B, prompts, limits)
    batch, most = len(limit_B), int(limit_B.max())
    limit_device_B = limit_B.to(device)
    always, first = suppression.on(device)
    tokens_BU = torch.full((batch, most), end_id, dtype=torch.int64, device=device)
    score_B = torch.zeros(batch, dtype=torch.float32, device=device)
    steps_B = torch.zeros(batch, dtype=torch.int64, device=device)
    alive = torch.arange(batch, device=device)
    ended = torch.zeros(batch, dtype=torch.bool, device=device)
    inputs_BU = prompt_BU
    for position in range(most):
        logits_BV = _masked(model.step(inputs_BU, state), always, first if position == 0 else None)
        for rule in rules:
            logits_BV = rule(logits_BV, tokens_BU[alive, :position])
        log_probs_BV = logits_BV.log_softmax(-1)
        if temperature > 0:
            drawn_B1 = (logits_BV / temperature).softmax(-1).multinomial(1, generator=generator)
            chosen_B, values_B = drawn_B1[:, 0], log_probs_BV.gather(1, drawn_B1)[:, 0]
        else:
            values_B, chosen_B = log_probs_BV.max(dim=-1)
        running = ~ended
        tokens_BU[alive, position] = torch.where(running, chosen_B, end_id)
        score_B[alive] += values_B * running
        steps_B[alive] += running
        ended = ended | (chosen_B == end_id) | (limit_device_B[alive] <= position + 1)
        inputs_BU = chosen_B[:, None]
        if device.type == "cpu" or position % _GPU_CHECK_EVERY == _GPU_CHECK_EVERY - 1:
            rows = (~ended).nonzero()[:, 0]
            if len(rows) == 0:
                break
            # Copying the cache costs as much as some steps: shrink only when it is worth it.
            if len(rows) <= 0.75 * len(alive):
                state.keep(rows)
                alive, ended, inputs_BU = alive[rows], ended[rows], inputs_BU[rows]
    mean_B = (score_B / steps_B.clamp(min=1)).tolist()
    rows_BU = [_until(row, end_id, limit) for row, limit in zip(tokens_BU.tolist(), limit_B.tolist(), strict=True)]
    return [Decoded(row, score) for row, score in zip(rows_BU, mean_B, strict=True)]


def _masked(logits_BV: Tensor, always: Tensor, first: Tensor | None) -> Tensor:
    logits_BV = logits_BV.float()
    logits_BV[:, always] = -torch.inf
    if first is not None:
        logits_BV[:, first] = -torch.inf
    return logits_BV


def _until(row: list[int], end_id: int, limit: int) -> list[int]:
    row = row[:limit]
    return row[: row.index(end_id)] if end_id in row else row
