"""N-gram models against probabilities computed by hand, and Kneser-Ney against its formulas in plain Python."""

import math
import random
import warnings
from collections import Counter, defaultdict

import numpy as np
import pytest

from ssl_asr.decoding.fusion.automata import LabelNGram
from ssl_asr.decoding.kneser_ney import FALLBACK_DISCOUNTS, estimate, perplexity
from ssl_asr.decoding.language_models import read_language_model
from ssl_asr.decoding.ngram import NGram
from ssl_asr.errors import LanguageModelError

ARPA = r"""
\data\
ngram 1=5
ngram 2=4
ngram 3=1

\1-grams:
-99	<s>	-0.30
-0.7	</s>
-1.0	<unk>
-0.6	a	-0.20
-0.5	b	-0.10

\2-grams:
-0.20	<s> a	-0.05
-0.40	a b	-0.15
-0.30	b </s>
-0.25	b a

\3-grams:
-0.10	<s> a b

\end\
"""


def _arpa(text=ARPA):
    return NGram.from_arpa_lines(text.splitlines())


@pytest.mark.parametrize(
    ("sentence", "log10"),
    [
        # "<s> a" and "<s> a b" are stored. "a b </s>" is not: back off from "a b" to "b </s>".
        (["a", "b"], -0.20 - 0.10 + (-0.15 - 0.30)),
        # "<s> b" is not stored: back off from "<s>". "b b" is not stored: back off from "b". "b </s>" is stored.
        (["b", "b"], (-0.30 - 0.5) + (-0.10 - 0.5) - 0.30),
        # An out-of-vocabulary word after "<s> a": back off twice. The next state is the empty context.
        (["a", "zebra", "a"], -0.20 + (-0.05 - 0.20 - 1.0) - 0.6 + (-0.20 - 0.7)),
        ([], -0.30 - 0.7),
    ],
)
def test_sentence_log_prob_equals_hand_computed_back_off(sentence, log10):
    assert _arpa().sentence_log_prob(sentence) / math.log(10) == pytest.approx(log10, abs=1e-9)


def test_row_holds_the_log_probability_of_every_word():
    model = _arpa()
    states = {model.begin, 0}
    for _ in range(3):
        states |= {model.step(state, word)[1] for state in states for word in range(len(model.words))}
    for state in states:
        assert model.row(state) == pytest.approx([model.step(state, word)[0] for word in range(len(model.words))])


def test_oov_word_has_log_prob_minus_100_if_file_has_no_unk():
    model = _arpa(ARPA.replace("-1.0\t<unk>\n", "").replace("ngram 1=5", "ngram 1=4"))
    assert not model.has_word("zebra")
    assert model.has_word("a")
    assert model.score(0, "zebra")[0] == pytest.approx(-100 * math.log(10))


def test_arpa_file_round_trip(tmp_path):
    model = _arpa()
    for name in ("lm.arpa", "lm.arpa.gz"):
        model.write_arpa(tmp_path / name)
        again = read_language_model(tmp_path / name)
        for sentence in (["a", "b"], ["b", "b", "a"], ["zebra"]):
            assert again.sentence_log_prob(sentence) == pytest.approx(model.sentence_log_prob(sentence), abs=1e-6)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("-0.40\ta b", "-0.40\ta c", 16),
        ("-0.6\ta", "much\ta", 11),
        ("-0.6\ta\t-0.20", "-0.6\ta\t-0.20\t7", 11),
        ("\\2-grams:", "\\3-grams:", 14),
        ("\\end\\\n", "", 22),
        ("ngram 2=4", "ngram 2=5", 23),
        ("-0.5\tb", "-0.5\ta", 12),
    ],
)
def test_error_in_arpa_file_names_the_line(old, new, line):
    with pytest.raises(LanguageModelError, match=f"arpa:{line}"):
        _arpa(ARPA.replace(old, new))


def test_missing_and_unreadable_files_are_errors(tmp_path):
    with pytest.raises(LanguageModelError, match=r"no such language model"):
        read_language_model(tmp_path / "none.arpa")
    (tmp_path / "noise.arpa").write_bytes(bytes(range(256)))
    with pytest.raises(LanguageModelError, match="cannot be read"):
        read_language_model(tmp_path / "noise.arpa")


# Kneser-Ney -------------------------------------------------------------------------------------------------


def _sentences(count=400, seed=0):
    """Random sentences with counts of all sizes."""
    draw = random.Random(seed)
    words = [f"w{i}" for i in range(200)]
    weights = [1 / (i + 1) for i in range(200)]
    return [
        [draw.choices(words, weights)[0] if draw.random() < 0.7 else "the" for _ in range(draw.randint(1, 8))]
        for _ in range(count)
    ]


def _by_formula(sentences, order):
    """Interpolated modified Kneser-Ney as a recursive function of a word and its context."""
    raw = Counter()
    for words in sentences:
        marked = ("<s>", *words, "</s>")
        for n in range(1, order + 1):
            raw.update(marked[i : i + n] for i in range(len(marked) - n + 1))
    before = defaultdict(set)
    for gram in raw:
        if len(gram) > 1:
            before[gram[1:]].add(gram[0])
    counts = {
        gram: raw[gram] if len(gram) == order or gram[0] == "<s>" else len(before[gram])
        for gram in raw
        if gram != ("<s>",)
    }
    discounts = {}
    for n in range(1, order + 1):
        t = Counter(min(count, 5) for gram, count in counts.items() if len(gram) == n)
        y = t[1] / (t[1] + 2 * t[2])
        discounts[n] = [0.0, *(j - (j + 1) * y * t[j + 1] / t[j] for j in (1, 2, 3))]
    vocabulary = {gram[0] for gram in counts if len(gram) == 1} | {"<unk>"}

    def probability(word, context):
        n = len(context) + 1
        followers = {gram[-1]: c for gram, c in counts.items() if len(gram) == n and gram[:-1] == context}
        lower = 1 / len(vocabulary) if not context else probability(word, context[1:])
        total = sum(followers.values())
        if total == 0:
            return lower
        taken = [discounts[n][min(3, c)] for c in followers.values()]
        own = followers.get(word, 0)
        return (own - discounts[n][min(3, own)]) / total + sum(taken) / total * lower

    return probability, vocabulary


@pytest.mark.parametrize("order", [1, 2, 3])
def test_kneser_ney_equals_its_formula(order):
    sentences = _sentences(900)
    estimated = estimate(sentences, order=order)
    assert not estimated.fell_back
    model = estimated.model
    probability, vocabulary = _by_formula(sentences, order)
    contexts = [(), ("<s>",), ("the",), ("w0", "the"), ("<s>", "w1"), ("w0", "w1"), ("w199", "w199")]
    for context in contexts:
        state = model.begin if context[:1] == ("<s>",) else 0
        for word in context[1:] if context[:1] == ("<s>",) else context:
            state = model.score(state, word)[1]
        kept = context[-(order - 1) :] if order > 1 else ()
        for word in sorted(vocabulary):
            expected = probability(word, kept)
            assert math.exp(model.score(state, word)[0]) == pytest.approx(expected, rel=1e-9), (context, word)


@pytest.mark.parametrize("prune", [(), (0, 0, 1), (0, 1, 2)])
def test_probabilities_after_any_state_sum_to_one(prune):
    model = estimate(_sentences(), order=3, prune=prune).model
    states = {0, model.begin}
    for sentence in _sentences(40):
        state = model.begin
        for word in sentence:
            state = model.score(state, word)[1]
            states.add(state)
    begin = model.index["<s>"]
    for state in states:
        assert np.exp(np.delete(model.row(state), begin)).sum() == pytest.approx(1.0, abs=1e-9)


def test_pruning_removes_rare_ngrams_and_keeps_all_words():
    whole, pruned = (estimate(_sentences(), order=3, prune=prune).model.counts() for prune in ((), (0, 0, 1)))
    assert pruned[:2] == whole[:2]
    assert pruned[2] < whole[2]


def test_small_text_falls_back_to_fixed_discounts_and_reports_it():
    estimated = estimate([["a", "b"], ["a"]], order=2)
    assert estimated.fell_back == [1, 2]
    assert estimated.discounts == [FALLBACK_DISCOUNTS] * 2


def test_order_longer_than_every_sentence():
    assert estimate([["a"]], order=9).model.counts() == [4, 2, 1]


@pytest.mark.parametrize("sentences", [[], [[]], [["a", "<s>"]], [["a b"]]])
def test_empty_text_and_marks_in_text_are_errors(sentences):
    with pytest.raises(LanguageModelError, match="text"):
        estimate(sentences, order=2)


def test_perplexity_equals_hand_computed_value():
    model = _arpa()
    found = perplexity(model, [["a", "b"], ["zebra"]])
    known = [-0.20, -0.10, -0.45, -0.7]
    unknown = -0.30 - 1.0
    assert found.known == pytest.approx(10 ** (-sum(known) / 4))
    assert found.all_words == pytest.approx(10 ** (-(sum(known) + unknown) / 5))
    assert (found.sentences, found.words, found.unknown) == (2, 3, 1)


def test_probabilities_equal_kenlm(tmp_path):
    kenlm = pytest.importorskip("kenlm", reason="kenlm is not installed: it needs a C++ compiler")
    model = estimate(_sentences(), order=3).model
    path = tmp_path / "lm.arpa"
    model.write_arpa(path)
    theirs = kenlm.Model(str(path))
    for sentence in [*_sentences(20, seed=1), ["zebra", "the"]]:
        log_prob = theirs.score(" ".join(sentence)) * math.log(10)
        assert model.sentence_log_prob(sentence) == pytest.approx(log_prob, abs=1e-3)


def test_labels_outside_the_model_score_as_its_unknown_word_and_none_is_silent():
    model = estimate([["a", "b"], ["b", "a", "a"]], order=2).model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        automaton = LabelNGram(model, [None, "a", "z", "b"], weight=0.5)
    _, state = model.score(model.begin, "a")
    rows = automaton.rows([model.begin, state])
    for row, key in zip(rows.tolist(), (model.begin, state), strict=True):
        assert row[1:] == pytest.approx([0.5 * model.score(key, word)[0] for word in ("a", "unheard", "b")])
        assert row[0] == -math.inf
    assert automaton.end(state) == pytest.approx(0.5 * model.end(state))
    assert automaton.advance(model.begin, 1) == state


def test_contexts_that_a_pruned_file_lacks_have_the_backed_off_log_probability():
    """The trigram "a b c" is missing, and "a b c d" needs it: log p(c | a b) is the back-off of "a b" and p(c | b)."""
    words = ["<unk>", "<s>", "</s>", "a", "b", "c", "d"]
    a, b, c, d = (words.index(word) for word in "abcd")

    def grams(*rows):
        return (
            np.array([row[0] for row in rows], dtype=np.int64),
            np.array([row[1] for row in rows]),
            np.array([row[2] for row in rows]),
        )

    orders = [
        grams(*(((word,), -2.0, -0.5) for word in range(7))),
        grams(((a, b), -0.2, -0.1), ((b, c), -0.3, -0.05), ((c, d), -0.7, 0.0)),
        grams(((b, c, d), -0.4, 0.0)),
        grams(((a, b, c, d), -0.05, 0.0)),
    ]
    model = NGram(words, orders)
    state = model.begin
    found = []
    for word in "abcd":
        log_prob, state = model.score(state, word)
        found.append(log_prob)
    # p(a) after the start, p(b | a), -0.1 - 0.3, and p(d | a b c).
    assert found == pytest.approx([-2.5, -0.2, -0.4, -0.05])
