"""N-gram models from text, by interpolated modified Kneser-Ney smoothing (Chen and Goodman, 1998, TR-10-98, section 3).

For a word ``w`` after a context ``h``, and ``h'`` the context without its first word::

    p(w | h) = max(c(h w) - D(c(h w)), 0) / c(h) + gamma(h) * p(w | h')
    gamma(h) = sum of D(c(h w)) over the words w seen after h, divided by c(h)
    p(w)     = max(c(w) - D(c(w)), 0) / c + gamma() / number of words

    c(h w)   longest n-grams and n-grams that start a sentence: number of occurrences;
             all others: number of distinct words before h w
    c(h)     sum of c(h w) over w
    D(c)     discount, one for each of the counts 1, 2 and 3 or more:
             D(j) = j - (j + 1) * y * t[j + 1] / t[j],   y = t[1] / (t[1] + 2 * t[2])
    t[j]     number of n-grams of this length with count j

The unigrams are interpolated with the uniform distribution, which gives ``<unk>`` its probability, as in KenLM's
``lmplz`` (Heafield et al., 2013).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ssl_asr.decoding.arpa import BEGIN, END, LN10, LOG10_ZERO, UNKNOWN, Float64s, Int64s, is_mark
from ssl_asr.decoding.ngram import Bools, NGram
from ssl_asr.errors import LanguageModelError

Discounts = tuple[float, float, float]

# Ids of the marks; <unk> is 0.
_BEGIN_ID, _END_ID = 1, 2
# Discounts for a text too small to estimate them from, as in KenLM.
FALLBACK_DISCOUNTS: Discounts = (0.5, 1.0, 1.5)


@dataclass(frozen=True, slots=True)
class _Grams:
    """The distinct n-grams of one length.

    ``contexts_N`` and ``suffixes_N`` index the n-grams of one word less: all words but the last, and all but the
    first. ``raw_N`` are occurrences, ``counts_N`` the counts of Kneser-Ney.
    """

    words_NK: Int64s
    contexts_N: Int64s
    suffixes_N: Int64s
    raw_N: Int64s
    counts_N: Int64s


@dataclass(frozen=True, slots=True)
class Estimate:
    """A model and the discounts of each order. ``fell_back`` lists the orders with `FALLBACK_DISCOUNTS`."""

    model: NGram
    discounts: list[Discounts]
    fell_back: list[int]


@dataclass(frozen=True, slots=True)
class _Smoothed:
    """One order: the probability of each n-gram, whether it is kept, and the back-off weight of each context."""

    probabilities_N: Float64s
    kept_N: Bools
    gamma_C: Float64s


def estimate(sentences: Iterable[Sequence[str]], *, order: int, prune: Sequence[int] = ()) -> Estimate:
    """Estimates an n-gram model.

    Args:
        sentences: The text, a sequence of words per sentence, without start and end marks.
        order: Length of the longest n-grams.
        prune: One threshold per order. N-grams that occur no more often than the threshold are left out. The last
            threshold holds for all longer n-grams, and thresholds do not decrease. Unigrams are always kept. Empty
            for no pruning.

    Raises:
        LanguageModelError: The text is empty, or a word is a mark.
    """
    words, flat_T, ends_T = _flatten(sentences)
    grams = _count(flat_T, ends_T, len(words), order)
    # The start mark is a context only and is never predicted.
    grams[0] = replace(grams[0], counts_N=np.where(np.arange(len(words)) == _BEGIN_ID, 0, grams[0].counts_N))
    discounts = [_discounts(gram.counts_N) for gram in grams]
    orders: list[tuple[Int64s, Float64s, Float64s]] = []
    # The uniform distribution over all words but the start mark.
    lower = _Smoothed(np.full(1, 1.0 / (len(words) - 1)), np.ones(1, dtype=bool), np.zeros(0))
    for k, gram in enumerate(grams, start=1):
        own = _smooth(gram, discounts[k - 1] or FALLBACK_DISCOUNTS, lower, _threshold(prune, k))
        if k == 1:
            own.probabilities_N[_BEGIN_ID] = 0.0
        else:
            orders[-1] = (*orders[-1][:2], _log(own.gamma_C)[lower.kept_N])
        no_backoffs_N = np.zeros(int(own.kept_N.sum()))
        orders.append((gram.words_NK[own.kept_N], _log(own.probabilities_N)[own.kept_N], no_backoffs_N))
        lower = own
    fell_back = [k for k, found in enumerate(discounts, start=1) if found is None]
    return Estimate(NGram(words, orders), [found or FALLBACK_DISCOUNTS for found in discounts], fell_back)


def _threshold(prune: Sequence[int], order: int) -> int:
    """N-grams of this order with no more occurrences are left out. Unigrams are kept at any count."""
    if order == 1:
        return -1
    return prune[min(order, len(prune)) - 1] if prune else 0


def _smooth(gram: _Grams, discounts: Discounts, lower: _Smoothed, threshold: int) -> _Smoothed:
    """The recurrence for one order, given the order below. An n-gram is kept only if its context is kept."""
    counts_N, contexts_N = gram.counts_N, gram.contexts_N
    contexts = len(lower.probabilities_N)
    kept_N = (gram.raw_N > threshold) & lower.kept_N[contexts_N]
    cut_N = np.array([0.0, *discounts])[np.minimum(counts_N, 3)]
    total_C = np.bincount(contexts_N, weights=counts_N, minlength=contexts)
    # The whole count of a pruned n-gram goes to the back-off weight of its context.
    freed_N = np.where(kept_N, cut_N, counts_N)
    gamma_C = np.bincount(contexts_N, weights=freed_N, minlength=contexts) / np.maximum(total_C, 1)
    seen_N = np.where(kept_N, counts_N - cut_N, 0.0) / np.maximum(total_C[contexts_N], 1)
    probabilities_N = seen_N + gamma_C[contexts_N] * lower.probabilities_N[gram.suffixes_N]
    return _Smoothed(probabilities_N, kept_N, np.where(total_C > 0, gamma_C, 1.0))


def _log(values_N: Float64s) -> Float64s:
    with np.errstate(divide="ignore"):
        result: Float64s = np.maximum(np.log(values_N), LOG10_ZERO * LN10)
    return result


def _flatten(sentences: Iterable[Sequence[str]]) -> tuple[list[str], Int64s, Int64s]:
    """The words in id order, the text as ids with marks, and for each position the end of its sentence (exclusive)."""
    index = {word: i for i, word in enumerate((UNKNOWN, BEGIN, END))}
    flat: list[int] = []
    lengths: list[int] = []
    for sentence in sentences:
        if not sentence:
            continue
        refuse_marks(sentence, "text")
        flat += [_BEGIN_ID, *(index.setdefault(word, len(index)) for word in sentence), _END_ID]
        lengths.append(len(sentence) + 2)
    if not lengths:
        raise LanguageModelError("text", "is empty, expected at least one sentence", "check the input files")
    lengths_S = np.array(lengths)
    return list(index), np.array(flat, dtype=np.int64), np.repeat(lengths_S.cumsum(), lengths_S)


def refuse_marks(words: Sequence[str], where: str) -> None:
    """Check that words can be words of a model.

    Args:
        words: The words of a sentence.
        where: Place of the sentence in the error message.

    Raises:
        LanguageModelError: A word is a mark such as ``<s>`` or ``<UNK>``, has a space, or is empty.
    """
    for word in words:
        if is_mark(word) or word.split() != [word]:
            what = f"got {word!r} as a word, expected no marks, no spaces and no empty words"
            raise LanguageModelError(where, what, "remove it from the text")


def _count(flat_T: Int64s, ends_T: Int64s, size: int, order: int) -> list[_Grams]:
    """The n-grams of every length up to ``order``, or up to the longest sentence."""
    positions_T = np.arange(len(flat_T))
    # At each position, the index of the n-gram that starts there; -1 if the sentence ends before the n-gram does.
    ids_T = flat_T
    raw_N, zeros_N = np.bincount(flat_T, minlength=size), np.zeros(size, dtype=np.int64)
    grams = [_Grams(np.arange(size, dtype=np.int64)[:, None], zeros_N, zeros_N, raw_N, raw_N)]
    for k in range(2, order + 1):
        fits_T = positions_T[positions_T + k <= ends_T]
        if not len(fits_T):
            break
        keys = ids_T[fits_T] * size + flat_T[fits_T + k - 1]
        keys_N, firsts_N, ids, raw_N = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        shorter = grams[-1]
        contexts_N, suffixes_N = keys_N // size, ids_T[fits_T[firsts_N] + 1]
        words_NK = np.concatenate([shorter.words_NK[contexts_N], (keys_N % size)[:, None]], axis=1)
        grams[-1] = _with_left_contexts(shorter, suffixes_N)
        grams.append(_Grams(words_NK, contexts_N, suffixes_N, raw_N, raw_N))
        ids_T = np.full(len(flat_T), -1, dtype=np.int64)
        ids_T[fits_T] = ids
    return grams


def _with_left_contexts(grams: _Grams, longer_suffixes_N: Int64s) -> _Grams:
    """The n-grams counted by distinct words before them, except at the start of a sentence."""
    before_N = np.bincount(longer_suffixes_N, minlength=len(grams.words_NK))
    counts_N = np.where(grams.words_NK[:, 0] == _BEGIN_ID, grams.raw_N, before_N)
    return replace(grams, counts_N=counts_N)


def _discounts(counts_N: Int64s) -> Discounts | None:
    """Discounts of the counts 1, 2 and 3 or more. None if the counts 1 to 4 do not all occur, or a value is invalid."""
    t = np.bincount(np.minimum(counts_N, 5), minlength=6)
    if (t[1:5] == 0).any():
        return None
    y = t[1] / (t[1] + 2 * t[2])
    one, two, three = (float(j - (j + 1) * y * t[j + 1] / t[j]) for j in (1, 2, 3))
    return (one, two, three) if 0 <= one <= 1 and 0 <= two <= 2 and 0 <= three <= 3 else None


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Perplexity of a text. Sentence ends count as words.

    Attributes:
        sentences, words, unknown: Number of sentences, of words, and of out-of-vocabulary (OOV) words.
        known: Perplexity without OOV words.
        all_words: Perplexity with OOV words at the probability of ``<unk>``.
    """

    sentences: int
    words: int
    unknown: int
    known: float
    all_words: float


def perplexity(model: NGram, sentences: Iterable[Sequence[str]]) -> Perplexity:
    """The perplexity of a model on sentences.

    Raises:
        LanguageModelError: There are no sentences.
    """
    count = words = unknown = 0
    known_total = unknown_total = 0.0
    for sentence in sentences:
        state = model.begin
        count += 1
        for word in sentence:
            log_prob, state = model.score(state, word)
            words += 1
            if model.has_word(word):
                known_total += log_prob
            else:
                unknown += 1
                unknown_total += log_prob
        known_total += model.end(state)
    if count == 0:
        raise LanguageModelError("text", "is empty, expected at least one sentence", "check the input files")
    tokens = words + count
    return Perplexity(
        sentences=count,
        words=words,
        unknown=unknown,
        known=math.exp(-known_total / (tokens - unknown)),
        all_words=math.exp(-(known_total + unknown_total) / tokens),
    )
