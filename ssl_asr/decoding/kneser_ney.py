"""N-gram models from text, by interpolated modified Kneser-Ney (Chen and Goodman, 1998, TR-10-98, section 3).

Counts of lower orders are of distinct words before, discounts are one for each of the counts 1, 2 and 3 or more, and
the unigrams are interpolated with the uniform distribution, which is what ``<unk>`` gets, as in KenLM's ``lmplz``
(Heafield et al., 2013).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ssl_asr.decoding.ngram import BEGIN, END, UNKNOWN, Float64s, Int64s, NGram
from ssl_asr.errors import LanguageModelError

# Where a text is too small to estimate its discounts from (KenLM's choice too).
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)


@dataclass(frozen=True, slots=True)
class _Grams:
    """The n-grams of one length, each once.

    ``contexts_N`` and ``suffixes_N`` number n-grams of one word less, ``raw_N`` are occurrences and ``counts_N`` what
    Kneser-Ney counts.
    """

    words_NK: Int64s
    contexts_N: Int64s
    suffixes_N: Int64s
    raw_N: Int64s
    counts_N: Int64s


@dataclass(frozen=True, slots=True)
class Estimate:
    """A model, and the discounts of each order (1, 2, 3 or more); ``fell_back`` lists orders with fixed ones."""

    model: NGram
    discounts: list[tuple[float, float, float]]
    fell_back: list[int]


def estimate(sentences: Iterable[Sequence[str]], *, order: int, prune: Sequence[int] = ()) -> Estimate:
    """The model of sentences, each a sequence of words without marks of beginning or end.

    Args:
        sentences: the text.
        order: the longest n-grams.
        prune: for each order, n-grams that occur so often and no oftener are left out; the last holds for all
            longer ones, no number is less than the one before, and unigrams are always kept. Empty prunes nothing.

    Raises:
        LanguageModelError: there is no text, or a word of it is a mark.
    """
    words, flat_T, ends_T = _flatten(sentences)
    grams = _count(flat_T, ends_T, len(words), order)
    discounts, fell_back = [], []
    orders: list[tuple[Int64s, Float64s, Float64s]] = []
    lower_N = np.full(1, 1.0 / (len(words) - 1))
    kept_before_N = np.zeros(1, dtype=np.int64)
    for k, gram in enumerate(grams, start=1):
        counts_N = gram.counts_N.copy()
        if k == 1:
            counts_N[words.index(BEGIN)] = 0
        found = _discounts(counts_N)
        if found is None:
            fell_back.append(k)
            found = FALLBACK_DISCOUNTS
        discounts.append(found)
        least = -1 if k == 1 else 0 if not prune else prune[min(k, len(prune)) - 1]
        kept_N = (gram.raw_N > least) & (kept_before_N[gram.contexts_N] >= 0)
        cut_N = np.array([0.0, *found])[np.minimum(counts_N, 3)]
        contexts = len(lower_N)
        total_C = np.bincount(gram.contexts_N, weights=counts_N, minlength=contexts)
        # What a pruned n-gram had goes to its context's back-off, all of it.
        freed_N = np.where(kept_N, cut_N, counts_N)
        gamma_C = np.bincount(gram.contexts_N, weights=freed_N, minlength=contexts) / np.maximum(total_C, 1)
        seen_N = np.where(kept_N, counts_N - cut_N, 0.0) / np.maximum(total_C[gram.contexts_N], 1)
        lower_N = seen_N + gamma_C[gram.contexts_N] * lower_N[gram.suffixes_N]
        if k == 1:
            # The start of a sentence is never foretold.
            lower_N[words.index(BEGIN)] = 0.0
        else:
            orders[-1] = (*orders[-1][:2], _log(np.where(total_C > 0, gamma_C, 1.0))[kept_before_N >= 0])
        kept_before_N = np.where(kept_N, 0, -1)
        orders.append((gram.words_NK[kept_N], _log(lower_N)[kept_N], np.zeros(int(kept_N.sum()))))
    return Estimate(NGram(words, orders), discounts, fell_back)


def _log(values_N: Float64s) -> Float64s:
    with np.errstate(divide="ignore"):
        result: Float64s = np.maximum(np.log(values_N), -99.0 * math.log(10.0))
    return result


def _flatten(sentences: Iterable[Sequence[str]]) -> tuple[list[str], Int64s, Int64s]:
    """Words in id order, the text as ids with marks, and for each place where its sentence ends (exclusive)."""
    words = [UNKNOWN, BEGIN, END]
    index = {word: i for i, word in enumerate(words)}
    flat: list[int] = []
    lengths: list[int] = []
    for sentence in sentences:
        if not sentence:
            continue
        marks = [word for word in sentence if word in (BEGIN, END, UNKNOWN) or not word or word.split() != [word]]
        if marks:
            raise LanguageModelError("text", f"holds {marks[0]!r} as a word", "leave marks and empty words out")
        flat += [1, *(index.setdefault(word, len(index)) for word in sentence), 2]
        lengths.append(len(sentence) + 2)
    if not lengths:
        raise LanguageModelError("text", "is empty", "a language model is made from sentences")
    lengths_S = np.array(lengths)
    return list(index), np.array(flat, dtype=np.int64), np.repeat(lengths_S.cumsum(), lengths_S)


def _count(flat_T: Int64s, ends_T: Int64s, size: int, order: int) -> list[_Grams]:
    """N-grams of every length with what Kneser-Ney counts: of the longest, occurrences; else words before."""
    places_T = np.arange(len(flat_T))
    ids_T = flat_T
    words_NK = np.arange(size, dtype=np.int64)[:, None]
    raw_N = np.bincount(flat_T, minlength=size)
    zeros_N = np.zeros(size, dtype=np.int64)
    grams = [_Grams(words_NK, zeros_N, zeros_N, raw_N, raw_N)]
    for k in range(2, order + 1):
        fits_T = places_T[places_T + k <= ends_T]
        if not len(fits_T):
            break
        keys = ids_T[fits_T] * size + flat_T[fits_T + k - 1]
        keys_N, firsts_N, ids, raw_N = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        contexts_N = keys_N // size
        suffixes_N = ids_T[fits_T[firsts_N] + 1]
        longer_words_NK = np.concatenate([words_NK[contexts_N], (keys_N % size)[:, None]], axis=1)
        before_N = np.bincount(suffixes_N, minlength=len(words_NK))
        last = grams[-1]
        begins_N = last.words_NK[:, 0] == 1
        counts_N = np.where(begins_N, last.raw_N, before_N)
        grams[-1] = _Grams(last.words_NK, last.contexts_N, last.suffixes_N, last.raw_N, counts_N)
        grams.append(_Grams(longer_words_NK, contexts_N, suffixes_N, raw_N, raw_N))
        longer_ids_T = np.full(len(flat_T), -1, dtype=np.int64)
        longer_ids_T[fits_T] = ids
        ids_T, words_NK = longer_ids_T, longer_words_NK
    return grams


def _discounts(counts_N: Int64s) -> tuple[float, float, float] | None:
    """What is taken from counts of 1, 2 and 3 or more; None where too few n-grams have the counts 1 to 4."""
    t = np.bincount(np.minimum(counts_N, 5), minlength=6)
    if (t[1:5] == 0).any():
        return None
    y = t[1] / (t[1] + 2 * t[2])
    found = tuple(float(j - (j + 1) * y * t[j + 1] / t[j]) for j in (1, 2, 3))
    one, two, three = found
    return (one, two, three) if 0 <= one <= 1 and 0 <= two <= 2 and 0 <= three <= 3 else None


@dataclass(frozen=True, slots=True)
class Perplexity:
    """How well a model foretells a text; ends of sentences count as words, as everywhere.

    ``known`` leaves out the words the model does not know, ``all_words`` charges them at ``<unk>``.
    """

    sentences: int
    words: int
    unknown: int
    known: float
    all_words: float


def perplexity(model: NGram, sentences: Iterable[Sequence[str]]) -> Perplexity:
    """The perplexity of sentences.

    Raises:
        LanguageModelError: there is no sentence.
    """
    count = words = unknown = 0
    known_total = unknown_total = 0.0
    for sentence in sentences:
        state = model.begin
        count += 1
        for word in sentence:
            log_prob, state = model.score(state, word)
            words += 1
            if model.knows(word):
                known_total += log_prob
            else:
                unknown += 1
                unknown_total += log_prob
        known_total += model.end(state)
    if count == 0:
        raise LanguageModelError("text", "is empty", "perplexity is that of sentences")
    tokens = words + count
    return Perplexity(
        sentences=count,
        words=words,
        unknown=unknown,
        known=math.exp(-known_total / (tokens - unknown)),
        all_words=math.exp(-(known_total + unknown_total) / tokens),
    )
