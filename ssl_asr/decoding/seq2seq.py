"""The ``decoder`` options of autoregressive models: Whisper's, and the attention decoder of joint models."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Interval, MinLen
from torch import Tensor

from ssl_asr.decoding.beam import beam_search
from ssl_asr.decoding.coverage import CoverageScorer
from ssl_asr.decoding.ctc_prefix import CtcPrefixScorer
from ssl_asr.decoding.files import LanguageModelName
from ssl_asr.decoding.fusion.automata import Automaton
from ssl_asr.decoding.fusion.options import FusionOptions
from ssl_asr.decoding.fusion.scorers import FusionScorer
from ssl_asr.decoding.fusion.tables import Fusion
from ssl_asr.decoding.greedy import greedy_decode
from ssl_asr.decoding.rescoring import Rescoring, n_best_conflicts
from ssl_asr.decoding.step_model import Constraints, Decoded, Scorer, StepModel
from ssl_asr.errors import ConfigError
from ssl_asr.types import (
    BLANK_ID,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Utterance,
)

# Tokens that every utterance may have, however short it is, when tokens are limited by its length.
_LEAST_LIMIT = 8


@dataclass(frozen=True, kw_only=True)
class _Greedy:
    """What greedy search shares with beam search, so that callers treat all options alike."""

    n_best: ClassVar[int] = 1
    beam_size: ClassVar[int] = 1
    length_penalty: ClassVar[float] = 1.0

    def rescorer(self) -> None:
        """None: a single text has no rank."""

    def search(
        self,
        model: StepModel,
        h_BFD: Tensor,
        context_lengths_B: Tensor,
        prompts: Sequence[Sequence[int]],
        *,
        constraints: Constraints,
        scorers: Sequence[Scorer] = (),
    ) -> list[list[Decoded]]:
        """One text per utterance. Arguments as for `ssl_asr.decoding.greedy.greedy_decode`; ``scorers`` is empty."""
        assert not scorers, "greedy search takes no scorers"
        found = greedy_decode(model, h_BFD, context_lengths_B, prompts, constraints=constraints)
        return [[decoded] for decoded in found]


@dataclass(frozen=True, kw_only=True)
class _Beam(Rescoring):
    """What the beam searches share."""

    beam_size: PositiveInt
    length_penalty: NonNegativeFloat
    n_best: PositiveInt

    @property
    def decoder_weight(self) -> float:
        """Weight of the decoder's log-probabilities."""
        return 1.0

    def search(
        self,
        model: StepModel,
        h_BFD: Tensor,
        context_lengths_B: Tensor,
        prompts: Sequence[Sequence[int]],
        *,
        constraints: Constraints,
        scorers: Sequence[Scorer] = (),
    ) -> list[list[Decoded]]:
        """Texts of each utterance, best first. Arguments as for `ssl_asr.decoding.beam.beam_search`.

        With rescoring, returns as many texts as are rescored.
        """
        model, scorers = self._prepared(model, scorers)
        return beam_search(
            model,
            h_BFD,
            context_lengths_B,
            prompts,
            constraints=constraints,
            beam_size=self.beam_size,
            length_penalty=self.length_penalty,
            n_best=self.searched(self.n_best),
            decoder_weight=self.decoder_weight,
            scorers=scorers,
        )

    def _prepared(self, model: StepModel, scorers: Sequence[Scorer]) -> tuple[StepModel, Sequence[Scorer]]:
        """The model and the scorers of a search. A subclass may add scorers that watch the model."""
        return model, scorers

    def conflicts(self, run: object) -> Iterator[ConfigError]:
        """An n-best list that is longer than the beam."""
        return n_best_conflicts(self.beam_size, self.n_best)


@dataclass(frozen=True, kw_only=True)
class _Limited:
    """A decoder that can limit the number of tokens by the length of the utterance."""

    max_tokens_per_s: PositiveFloat | None

    def with_token_cap(self, max_tokens_per_s: float) -> Self:
        """The option with another ``max_tokens_per_s``."""
        return replace(self, max_tokens_per_s=max_tokens_per_s)

    def limits(self, utterances: Sequence[Utterance]) -> list[int] | None:
        """Maximum number of tokens per utterance. None for no limit but the model's."""
        if self.max_tokens_per_s is None:
            return None
        return [_LEAST_LIMIT + int(self.max_tokens_per_s * utterance.duration) for utterance in utterances]


@dataclass(frozen=True, kw_only=True)
class _WhisperText(_Limited):
    """Settings that Whisper's decoders share."""

    tasks: ClassVar[frozenset[str]] = frozenset({"seq2seq"})

    suppress: bool
    timestamps: bool = False
    prompt: str | None = None
    min_tokens: NonNegativeInt | None = None
    max_tokens: PositiveInt | None = None

    def limits(self, utterances: Sequence[Utterance]) -> list[int] | None:
        """Maximum number of tokens per utterance. None for no limit but the model's."""
        by_length = super().limits(utterances)
        if self.max_tokens is None:
            return by_length
        if by_length is None:
            return [self.max_tokens] * len(utterances)
        return [min(self.max_tokens, limit) for limit in by_length]


@dataclass(frozen=True, kw_only=True)
class WhisperGreedy(_Greedy, _WhisperText):
    """The ``whisper_greedy`` decoder.

    A text fails if its compression ratio or its mean log-probability is out of bounds. It is then sampled again at
    the next temperature.

    Attributes:
        suppress: Apply the suppression lists of the checkpoint, as in its published results.
        max_tokens_per_s: Limits an utterance to 8 tokens plus this number per second, which ends repetition loops
            early. null for the limit of the model.
        timestamps: Write segments with timestamps. Only for models that have not lost timestamps in fine-tuning.
        temperatures: Tried in order. Above 0, tokens are sampled, with a seed that depends on the utterance.
        max_compression: A text that zlib compresses by more than this ratio fails. null for no test.
        min_log_prob: A text with a lower mean log-probability per token fails. null for no test.
        no_speech: If the no-speech probability is higher and the text fails ``min_log_prob``, the text is empty.
            null for no test.
        prompt: Previous text, or a text in the style to follow. It is read and not written. ``prompt`` in the
            manifest replaces it. null for none.
        min_tokens, max_tokens: Bounds on the tokens of a text. null for no bound.
    """

    temperatures: Annotated[list[NonNegativeFloat], MinLen(1)] = field(default_factory=lambda: [0.0])
    max_compression: PositiveFloat | None = None
    min_log_prob: float | None = None
    no_speech: Fraction | None = None

    def fails(self, text: str, score: float) -> bool:
        """Whether a text looks wrong: it repeats itself, or its mean log-probability is too low."""
        raw = text.encode()
        repeats = self.max_compression is not None and len(raw) > self.max_compression * len(zlib.compress(raw))
        return repeats or self.is_unlikely(score)

    def is_unlikely(self, score: float) -> bool:
        """Whether a mean log-probability is below ``min_log_prob``."""
        return self.min_log_prob is not None and score < self.min_log_prob

    def parts(self, vocab_size: int, spell: Callable[[list[int]], str]) -> list[Automaton[Any]]:
        """No automata: greedy search has no shallow fusion."""
        return []

    def scorers(self, fusion: Fusion | None, utterances: int) -> list[Scorer]:
        """No scorers: greedy search has no shallow fusion."""
        return []


@dataclass(frozen=True, kw_only=True)
class AttentionGreedy(_Greedy, _Limited):
    """The ``attention_greedy`` decoder of joint models.

    Attributes:
        max_tokens_per_s: Limits an utterance to 8 tokens plus this number per second. null for the number of its
            frames.
    """

    tasks: ClassVar[frozenset[str]] = frozenset({"joint"})

    def parts(self, labels: Sequence[str | None]) -> list[Automaton[Any]]:
        """No automata: greedy search has no shallow fusion."""
        return []

    def scorers(self, ctc: Callable[[], Tensor], frame_lengths_B: Tensor, fusion: Fusion | None) -> list[Scorer]:
        """No scorers: greedy search decodes with the attention decoder alone."""
        return []


def _folded_phrase(phrase: str) -> str:
    """A phrase as `fold` spells tokens. Without letters, it stays as it is and is reported as impossible to spell."""
    return fold(" ".join(phrase.split())).strip() or phrase


@dataclass(frozen=True, kw_only=True)
class WhisperBeam(_Beam, _WhisperText):
    """The ``whisper_beam`` decoder, with optional shallow fusion and rescoring.

    Rescoring adds to the log-probability of a text before the division by its length.

    Attributes:
        suppress, max_tokens_per_s, timestamps, prompt, min_tokens, max_tokens: See `WhisperGreedy`.
        beam_size: Number of hypotheses kept.
        length_penalty: Exponent of the length that scores are divided by. 0 ranks by log-probability.
        n_best: Number of texts per utterance.
        max_labels: Language models and hotwords score this number of most probable tokens per hypothesis.
        lm: A language model (see `FusionOptions`).
        lm_unit: ``word`` for a model over words in lower case without punctuation, ``label`` for a causal model over
            Whisper's own tokens (GPT-2's, for the English checkpoints).
        lm_weight, word_score, unknown_score: See `FusionOptions`.
        hotwords, hotword_score: See `FusionOptions`. Case and punctuation are ignored.
    """

    temperatures: ClassVar[tuple[float, ...]] = (0.0,)
    no_speech: ClassVar[float | None] = None

    max_labels: PositiveInt = 20
    lm: LanguageModelName | None = None
    lm_unit: Literal["word", "label"] = "word"
    lm_weight: float = 0.1
    word_score: float = 0.0
    unknown_score: float | None = -1.0
    hotwords: list[str] = field(default_factory=list)
    hotword_score: float = 0.3

    def fails(self, text: str, score: float) -> bool:
        """False: beam search has no temperature fallback."""
        return False

    def is_unlikely(self, score: float) -> bool:
        """False: beam search has no temperature fallback."""
        return False

    def parts(self, vocab_size: int, spell: Callable[[list[int]], str]) -> list[Automaton[Any]]:
        """The automata of shallow fusion over Whisper's tokens. Empty if nothing is to be fused.

        Args:
            vocab_size: Number of tokens.
            spell: Converts tokens to text, with a space before each word.

        Raises:
            LanguageModelError: A file is missing or wrong, or none of its words can be spelled.
        """
        if self.lm is None and not self.hotwords and self.word_score == 0:
            return []
        own = {
            option.name: getattr(self, option.name) for option in fields(FusionOptions) if hasattr(self, option.name)
        }
        options = FusionOptions(**(own | {"label_score": 0.0, "lexicon": None}))
        tokens = [spell([token]) for token in range(vocab_size)]
        return options.parts([fold(token) for token in tokens], tokens, _folded_phrase)

    def scorers(self, fusion: Fusion | None, utterances: int) -> list[Scorer]:
        """The scorers of one search.

        Args:
            fusion: Tables of `parts`. None for no shallow fusion.
            utterances: Number of utterances in the batch.
        """
        if fusion is None:
            return []
        return [FusionScorer(fusion, rows=utterances * self.beam_size, candidates=self.max_labels)]


@dataclass(frozen=True, kw_only=True)
class AttentionBeam(FusionOptions, _Beam, _Limited):
    """The ``attention_beam`` decoder of joint models: attention decoder, CTC, coverage and shallow fusion.

    Attributes:
        max_tokens_per_s: See `AttentionGreedy`.
        beam_size, length_penalty, n_best: See `WhisperBeam`.
        ctc_weight: Weight of CTC's prefix log-probabilities. The attention decoder has the rest, 1 - ``ctc_weight``.
            0 for no CTC.
        max_labels: CTC scores this number of most probable labels per hypothesis. null for all labels.
        coverage_weight: Score of each covered frame (see `ssl_asr.decoding.coverage`).
        coverage_threshold: Total attention weight from which a frame is covered.
    """

    tasks: ClassVar[frozenset[str]] = frozenset({"joint"})

    ctc_weight: Annotated[float, Interval(ge=0, lt=1)]
    max_labels: PositiveInt | None
    coverage_weight: float = 0.0
    coverage_threshold: PositiveFloat = 0.5

    def scorers(self, ctc: Callable[[], Tensor], frame_lengths_B: Tensor, fusion: Fusion | None) -> list[Scorer]:
        """The scorers of one search, besides coverage.

        Args:
            ctc: Returns CTC log-probabilities, ``log_probs_BFV``. Called only if CTC has a weight.
            frame_lengths_B: Number of valid frames, int64 on the CPU.
            fusion: Tables of `parts`. None for no shallow fusion.
        """
        scorers: list[Scorer] = []
        if self.ctc_weight > 0:
            scorers.append(
                CtcPrefixScorer(
                    ctc(),
                    frame_lengths_B,
                    beams=self.beam_size,
                    blank=BLANK_ID,
                    weight=self.ctc_weight,
                    candidates=self.max_labels,
                )
            )
        if fusion is not None:
            scorers.append(FusionScorer(fusion, rows=len(frame_lengths_B) * self.beam_size))
        return scorers

    @property
    def decoder_weight(self) -> float:
        """Weight of the attention decoder's log-probabilities."""
        return 1 - self.ctc_weight

    def _prepared(self, model: StepModel, scorers: Sequence[Scorer]) -> tuple[StepModel, Sequence[Scorer]]:
        """Adds coverage, which must see the attention weights of the model, if it has a weight."""
        if self.coverage_weight == 0:
            return model, scorers
        coverage = CoverageScorer(
            model, beams=self.beam_size, weight=self.coverage_weight, threshold=self.coverage_threshold
        )
        return coverage, [*scorers, coverage]


WhisperDecoder = WhisperGreedy | WhisperBeam
AttentionDecoder = AttentionGreedy | AttentionBeam


def fold(text: str) -> str:
    """Text in lower case without punctuation, apostrophes kept, as language models have words.

    Example:
        >>> fold(" Don't, Anna!")
        " don't anna"
    """
    return "".join(character for character in text.lower() if character.isalnum() or character in " '")
