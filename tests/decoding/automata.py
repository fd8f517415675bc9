"""Random n-gram models, and automata of every kind that has a table."""

import math
import random

from ssl_asr.decoding.fusion.automata import LabelBonus, LabelNGram
from ssl_asr.decoding.fusion.hotwords import Hotwords
from ssl_asr.decoding.fusion.words import Words
from ssl_asr.decoding.ngram import NGram

CHARACTERS = [None, "⁇", " ", "a", "b", "c"]
PIECES = [None, "⁇", " ", "", "a", "b", "ab", " a", " ba", "ca", "bc", " abc"]
WORDS = ["a", "b", "ab", "ba", "abc", "cab", "bca", "aa", "cc"]


def random_ngram(order, seed, *, words=WORDS, unknown=True, end=True, begin=True):
    """Random n-grams, whose contexts are often missing, with random back-off weights, some of them 0."""
    draw = random.Random(seed)
    marks = [mark for mark, own in (("<s>", begin), ("</s>", end), ("<unk>", unknown)) if own]
    vocabulary = [*marks, *words]
    sections = [[(word,) for word in vocabulary]]
    for length in range(2, order + 1):
        grams = {tuple(draw.choice(vocabulary) for _ in range(length)) for _ in range(5 * length)}
        # Some continue a stored n-gram, so that long contexts are found.
        grams |= {(*draw.choice(sections[-1]), draw.choice(vocabulary)) for _ in range(5 * length)}
        sections.append(sorted(grams))
    lines = ["\\data\\", *(f"ngram {n}={len(grams)}" for n, grams in enumerate(sections, 1))]
    for n, grams in enumerate(sections, 1):
        lines.append(f"\\{n}-grams:")
        for gram in grams:
            backoff = "" if n == order else f"\t{draw.choice([0.0, -draw.random(), draw.random()])}"
            lines.append(f"{-3 * draw.random()}\t{' '.join(gram)}{backoff}")
    return NGram.from_arpa_lines([*lines, "\\end\\"])


def word_scores(labels, model, **own):
    settings = {"weight": 0.6, "word_score": 0.3, "unknown_score": -2.0, "vocabulary": None} | own
    return Words(labels, model=model, **settings)


def every_kind(labels, seed):
    """Every kind of automaton that has a table, alone and together."""
    model = random_ngram(1 + seed % 5, seed, unknown=seed % 2 == 0, end=seed % 3 > 0)
    tokens = {label.replace(" ", "▁") for label in labels if label and label != "⁇"}
    over_labels = random_ngram(1 + seed % 5, seed, words=sorted(tokens)[seed % 2 :], unknown=seed % 2 == 0)
    known, price = model.vocabulary, model.unknown_log_prob
    lexicon = {"a", "ab", "bcab", "cc"}
    yield [LabelNGram(over_labels, labels, weight=0.8)]
    yield [LabelBonus(labels, bonus=0.4)]
    yield [Hotwords(labels, ["ab", "ab a", "ab ab c", "ba", "abc ab a"], bonus=0.5)]
    # Of the language model's words, open and closed.
    for unknown_score in (-2.0, -math.inf):
        own = {"vocabulary": known, "unknown_score": unknown_score, "unknown_log_prob": price}
        yield [word_scores(labels, model, **own, unknown_alike=True)]
        # A lexicon that shares some words with the language model, and a lexicon alone.
        yield [word_scores(labels, model, **own | {"vocabulary": lexicon})]
        yield [word_scores(labels, None, vocabulary=lexicon, unknown_score=unknown_score, unknown_alike=True)]
    # Words without a vocabulary, and those that only the model lists.
    yield [word_scores(labels, None)]
    yield [word_scores(labels, model)]
    yield [
        word_scores(labels, model, vocabulary=known, unknown_log_prob=price, unknown_alike=True),
        Hotwords(labels, ["abc ab"], bonus=1.0),
        LabelNGram(over_labels, labels, weight=0.2),
        LabelBonus(labels, bonus=-0.1),
    ]
