"""Rescoring: a language model reads the n-best list of a search and ranks it again.

Each text is scored as a whole::

    new score = score + (rescore_weight * log p(text) + rescore_word_score * words) / divisor

`divisor` is what the search divided its log-probabilities by: the number of frames for CTC, a power of the number of
tokens for autoregressive decoders.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ssl_asr.decoding.files import LanguageModelName
from ssl_asr.decoding.language_models import read_language_model
from ssl_asr.decoding.word_model import WordModel
from ssl_asr.errors import ConfigError
from ssl_asr.types import PositiveInt


def n_best_conflicts(beam_size: int, n_best: int) -> Iterator[ConfigError]:
    """An error if an n-best list is longer than the beam."""
    if n_best > beam_size:
        what = f"is {n_best}, and the beam has {beam_size} hypotheses"
        yield ConfigError("decoder.n_best", what, f"use decoder.beam_size={n_best}, or a smaller decoder.n_best")


@dataclass(frozen=True, kw_only=True)
class Rescoring:
    """Options of rescoring, which decoders with a beam inherit.

    Attributes:
        rescore_lm: language model: ``.arpa``, ``.arpa.gz``, a KenLM binary, or a causal language model of transformers
            by its folder or its name on the Hugging Face Hub. null for no rescoring.
        rescore_best: number of hypotheses that are rescored, at most as many as the beam holds.
        rescore_weight: weight of the language model's log-probability of a text.
        rescore_word_score: score added for each word.
        rescore_lower: whether the language model reads the texts in lower case.
    """

    rescore_lm: LanguageModelName | None = None
    rescore_best: PositiveInt = 16
    rescore_weight: float = 0.5
    rescore_word_score: float = 0.0
    rescore_lower: bool = False

    def searched(self, n_best: int) -> int:
        """Number of hypotheses that a search must return, so that `n_best` remain after rescoring."""
        return n_best if self.rescore_lm is None else max(n_best, self.rescore_best)

    def rescorer(self) -> "Rescorer | None":
        """The rescorer, or None if there is no `rescore_lm`.

        Raises:
            LanguageModelError: There is no such language model.
        """
        return None if self.rescore_lm is None else Rescorer(self, read_language_model(self.rescore_lm))


class Rescorer:
    """Ranks the hypotheses of a search again with a language model.

    Args:
        options: Weights.
        model: Language model.
    """

    def __init__(self, options: Rescoring, model: WordModel[Any]) -> None:
        self.options, self.model = options, model

    def log_probs(self, texts: Sequence[str]) -> list[float]:
        """The language model's log-probability of each text, its end included."""
        return self.model.text_log_probs([text.lower() for text in texts] if self.options.rescore_lower else texts)

    def scores(self, texts: Sequence[str]) -> list[float]:
        """Weighted log-probability and word score of each text."""
        weight, word_score = self.options.rescore_weight, self.options.rescore_word_score
        pairs = zip(self.log_probs(texts), texts, strict=True)
        return [weight * log_prob + word_score * len(text.split()) for log_prob, text in pairs]

    def ranked(
        self, texts: Sequence[str], scores: Sequence[float], *, divisors: Sequence[float]
    ) -> list[tuple[int, float]]:
        """Indices of the texts, best first, each with its new score.

        Args:
            texts: Texts of the n-best list.
            scores: Their scores by the search.
            divisors: Divisor of the log-probabilities in each of `scores`.
        """
        rows = zip(scores, self.scores(texts), divisors, strict=True)
        new = [score + added / divisor for score, added, divisor in rows]
        return sorted(enumerate(new), key=lambda pair: -pair[1])
