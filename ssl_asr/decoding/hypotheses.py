"""From the texts of an autoregressive search to hypotheses."""

from collections.abc import Sequence

from ssl_asr.decoding.rescoring import Rescorer
from ssl_asr.decoding.step_model import Decoded
from ssl_asr.types import Alternative, Batch, Hypothesis, Tokenizer


def to_hypotheses(
    batch: Batch,
    found: Sequence[Sequence[Decoded]],
    tokenizer: Tokenizer,
    *,
    n_best: int = 1,
    rescorer: Rescorer | None = None,
    length_penalty: float = 1.0,
) -> list[Hypothesis]:
    """The best text of each utterance, with the next best as alternatives.

    Args:
        batch: The utterances.
        found: Texts of each utterance, best first.
        tokenizer: Spells the texts.
        n_best: Number of texts of each utterance.
        rescorer: Ranks the texts again, or None.
        length_penalty: Exponent of the length, end token included, that scores were divided by.
    """
    hypotheses = []
    for utterance, own in zip(batch.utterances, found, strict=True):
        texts, scores = [tokenizer.decode(one.tokens) for one in own], [one.score for one in own]
        ranked = list(enumerate(scores))
        if rescorer is not None:
            divisors = [(len(one.tokens) + 1) ** length_penalty for one in own]
            ranked = rescorer.ranked(texts, scores, divisors=divisors)
        (best, score), *others = ranked[:n_best]
        alternatives = [Alternative(texts[place], other) for place, other in others]
        hypotheses.append(Hypothesis(utterance.id, texts[best], score, own[best].tokens, alternatives=alternatives))
    return hypotheses
