"""Tables of automata on the device against the automata themselves, over random models, texts and vocabularies."""

import math
import random

import pytest
import torch

from ssl_asr.decoding.fusion import state_tables
from ssl_asr.decoding.fusion.automata import LabelBonus, LabelNGram
from ssl_asr.decoding.fusion.hotwords import Hotwords
from ssl_asr.decoding.fusion.tables import Fusion, ReachedRows
from ssl_asr.decoding.fusion.words import Words
from ssl_asr.decoding.ngram import NGram
from ssl_asr.decoding.ngram_table import NGramTable
from tests.waits import no_waits

CPU = torch.device("cpu")
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


@pytest.mark.parametrize("marks", [{}, {"unknown": False}, {"end": False}, {"begin": False, "unknown": False}])
@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_log_probabilities_are_those_of_the_model(order, marks):
    for seed in range(5):
        model = random_ngram(order, seed, **marks)
        table = NGramTable(model.arrays(), weight=0.7, device=CPU)
        draw = random.Random(seed)
        texts = [[draw.choice([*WORDS, "other", "<s>"]) for _ in range(12)] for _ in range(20)]
        states, theirs = torch.full((20,), table.begin), [model.begin] * 20
        for at in range(12):
            ends = [0.7 * model.end(state) for state in theirs]
            assert table.ends(states).tolist() == pytest.approx(ends, rel=1e-6, abs=1e-6)
            ids = torch.tensor([model.arrays().ids.get(text[at], table.unknown) for text in texts])
            with no_waits():
                found, states = table.lookup(states, ids)
            results = [model.score(state, text[at]) for state, text in zip(theirs, texts, strict=True)]
            assert found.tolist() == pytest.approx([0.7 * score for score, _ in results], rel=1e-6, abs=1e-6)
            theirs = [state for _, state in results]


def _words(labels, model, **own):
    settings = {"weight": 0.6, "word_score": 0.3, "unknown_score": -2.0, "vocabulary": None} | own
    return Words(labels, model=model, **settings)


def _parts(labels, seed):
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
        yield [_words(labels, model, **own, unknown_alike=True)]
        # A lexicon that shares some words with the language model, and a lexicon alone.
        yield [_words(labels, model, **own | {"vocabulary": lexicon})]
        yield [_words(labels, None, vocabulary=lexicon, unknown_score=unknown_score, unknown_alike=True)]
    # Words without a vocabulary, and those that only the model lists.
    yield [_words(labels, None)]
    yield [_words(labels, model)]
    yield [
        _words(labels, model, vocabulary=known, unknown_log_prob=price, unknown_alike=True),
        Hotwords(labels, ["abc ab"], bonus=1.0),
        LabelNGram(over_labels, labels, weight=0.2),
        LabelBonus(labels, bonus=-0.1),
    ]


def _check(parts, labels, seed, steps=14, beams=30):
    fusion, rows = Fusion(parts, size=len(labels)), ReachedRows(parts, size=len(labels), device=CPU)
    assert fusion._reached is None
    every = torch.arange(len(labels))[None, None]
    ours, theirs = fusion.begin(3, beams), torch.zeros(1, 3, beams, dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        torch.testing.assert_close(fusion.ends(ours), rows.ends(theirs), rtol=1e-5, atol=1e-5)
        with no_waits():
            scores, nexts = fusion.extend(ours, every)
        expected, their_nexts = rows.extend(theirs, every)
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
        # As in a search, forbidden labels are not followed.
        chance = torch.rand(scores.shape, generator=generator).masked_fill(expected == -math.inf, -1.0)
        best = chance.max(-1, keepdim=True)
        ours = torch.where(best.values[..., 0] >= 0, nexts.gather(-1, best.indices.expand(len(nexts), -1, -1, -1))[..., 0], ours)  # fmt: skip
        theirs = their_nexts.gather(-1, best.indices[None])[..., 0]
        rows.arrive(theirs)
        # A few candidates, other ones for each utterance, score as in the whole row.
        few = torch.randint(len(labels), (3, 1, 4), generator=generator)
        torch.testing.assert_close(fusion.extend(ours, few)[0], rows.extend(theirs, few)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("labels", [CHARACTERS, PIECES], ids=["characters", "pieces"])
@pytest.mark.parametrize("seed", range(4))
def test_tables_score_as_their_automata(labels, seed, dense, monkeypatch):
    if not dense:
        monkeypatch.setattr(state_tables, "_MAX_CELLS", 0)
    for parts in _parts(labels, seed):
        _check(parts, labels, seed)
