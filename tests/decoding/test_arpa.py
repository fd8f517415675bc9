"""ARPA files of other tools, against probabilities computed by hand and against KenLM."""

import itertools
import math

import pytest

from ssl_asr.decoding.arpa import UNKNOWN, find_mark
from ssl_asr.decoding.fusion.words import Words
from ssl_asr.decoding.kneser_ney import estimate
from ssl_asr.decoding.language_models import read_language_model
from ssl_asr.decoding.ngram import NGram
from ssl_asr.errors import LanguageModelError
from tests.decoding.test_ngram import _sentences

ARPA = r"""\data\
ngram 1=5
ngram 2=3

\1-grams:
-1.0	<unk>
-99	<s>	-0.3
-0.5	</s>
-0.2	a	-0.1
-0.4	b	-0.2

\2-grams:
-0.05	<s> a
-0.3	a b
-0.1	b </s>

\end\
"""
SENTENCES = [["a", "b"], ["zz"], ["b", "a", "zz", "b"], [], ["zz", "zz"]]
# <s> zz </s>: back off from <s>, then </s> after the empty context.
UNKNOWN_SENTENCE = -0.3 - 1.0 - 0.5


def _log10(model, words):
    return model.sentence_log_prob(words) / math.log(10)


def _saved(tmp_path, text, name="lm.arpa"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def _upper(text):
    return text.replace("<unk>", "<UNK>").replace("<s>", "<S>").replace("</s>", "</S>")


VARIANTS = {
    "as it is": ARPA,
    "upper-case <UNK>": ARPA.replace("<unk>", "<UNK>"),
    "mixed-case <Unk>": ARPA.replace("<unk>", "<Unk>"),
    "<oov>": ARPA.replace("<unk>", "<oov>"),
    "[UNK]": ARPA.replace("<unk>", "[UNK]"),
    "all marks in upper case": _upper(ARPA),
    "byte order mark": ARPA.encode("utf-8-sig"),
    "UTF-16": ARPA.encode("utf-16"),
    "Windows": ARPA.replace("\n", "\r\n"),
    "Macintosh": ARPA.replace("\n", "\r"),
    "spaces": ARPA.replace("\t", " "),
    "several spaces": ARPA.replace("\t", "   ").replace("<s> a", "<s>  a"),
    "tabs between words": ARPA.replace("<s> a", "<s>\ta").replace("b </s>", "b\t</s>"),
    "spaces at the ends": "\n".join(f" {line} \t" for line in ARPA.splitlines()),
    "text before the model": "made by a tool\n\nngram 1=9\n" + ARPA,
    "no blank lines": ARPA.replace("\n\n", "\n"),
    "many blank lines": ARPA.replace("\n", "\n\n"),
    "spaces in the counts": ARPA.replace("ngram 1=5", "ngram  1 = 5"),
    "exponents": ARPA.replace("-0.05", "-5.0E-02").replace("-0.3\ta b", "-3e-1\ta b"),
    "minus infinity": ARPA.replace("-99", "-inf"),
    "numbers without zeros": ARPA.replace("-0.", "-."),
    "back-off weights of the longest": ARPA.replace("a b\n", "a b\t-0.7\n"),
    "sections out of order inside": ARPA.replace("-0.05\t<s> a\n", "").replace(
        "</s>\n\n\\end", "</s>\n-0.05\t<s> a\n\n\\end"
    ),
}


@pytest.mark.parametrize("text", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_way_to_write_the_model_gives_the_same_scores(tmp_path, text):
    model = NGram.from_arpa(_saved(tmp_path, text))
    expected = NGram.from_arpa_lines(ARPA.splitlines())
    assert _log10(model, ["zz"]) == pytest.approx(UNKNOWN_SENTENCE)
    for words in SENTENCES:
        assert _log10(model, words) == pytest.approx(_log10(expected, words))
    assert model.vocabulary == {"a", "b"}
    assert not any(model.has_word(mark) for mark in ("<UNK>", "<unk>", "<oov>", "<S>", "</s>", "zz"))
    assert model.unknown_log_prob == pytest.approx(-1.0 * math.log(10))


def test_the_usual_spelling_is_taken_if_a_model_has_two(tmp_path):
    for first, second in itertools.permutations(("<unk>", "<UNK>")):
        lines = ARPA.replace("-1.0\t<unk>", f"-1.0\t{first}\n-3.0\t{second}").replace("ngram 1=5", "ngram 1=6")
        model = NGram.from_arpa_lines(lines.splitlines())
        assert model.words[model.unknown] == "<unk>"
        assert model.unknown_log_prob == pytest.approx((-1.0 if first == "<unk>" else -3.0) * math.log(10))
        assert model.vocabulary == {"a", "b"}
        assert NGram.from_arpa_lines(model.arpa_lines()).words == model.words
    assert find_mark(["a", "<OOV>", "<UNK>"], UNKNOWN) == "<UNK>"
    assert find_mark(["a", "unk"], UNKNOWN) is None


def test_a_model_of_single_words_and_a_model_without_marks():
    lines = ["\\data\\", "ngram 1=2", "", "\\1-grams:", "-0.3\ta\t-0.5", "-0.4\tb", "", "\\end\\"]
    model = NGram.from_arpa_lines(lines)
    # No context, so the back-off weight of a is not used; no </s>, so the end has no score.
    assert _log10(model, ["a", "b"]) == pytest.approx(-0.7)
    assert _log10(model, ["zz"]) == pytest.approx(-100)


def test_only_spaces_and_tabs_separate_words():
    words = ["10\u00a0000", "a\u3000b", "x\u2009y", "it’s", "\ufeffz"]
    lines = ["\\data\\", "ngram 1=5", "", "\\1-grams:", *(f"-0.{i}\t{w}" for i, w in enumerate(words, 1)), "\\end\\"]
    model = NGram.from_arpa_lines(lines)
    assert model.words == words
    assert model.text_log_probs(["10\u00a0000 a\u3000b"])[0] / math.log(10) == pytest.approx(-0.3)
    assert NGram.from_arpa_lines(model.arpa_lines()).words == words


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("-0.2\ta", "0.2\ta", 9, "above 0"),
        ("-0.2\ta", "1e-3\ta", 9, "above 0"),
        ("-0.3\ta b", "0.5\ta b", 14, "above 0"),
        ("-0.2\ta", "nan\ta", 9, "not a finite number"),
        ("-0.2\ta", "inf\ta", 9, "not a finite number"),
        ("-0.2\ta", "-0,2\ta", 9, "decimal points"),
        ("-0.2\ta", "-1_0\ta", 9, "not a finite number"),
        ("-0.2\ta", "-١\ta", 9, "not a finite number"),
        ("-0.2\ta", "-1e300\ta", 9, "out of range"),
        ("a\t-0.1", "a\tnan", 9, "back-off weight 'nan'"),
        ("a\t-0.1", "a\t-0.1x", 9, "back-off weight"),
        ("-0.3\ta b", "-0.3\t<s> a", 14, "the n-gram '<s> a' is repeated"),
        ("-0.4\tb", "-0.4\ta", 10, "the unigram 'a' is repeated"),
        ("-0.3\ta b", "-0.3\ta c", 14, "'c' is not a unigram"),
        ("-0.3\ta b", "-0.3\ta", 14, "got 2 fields, expected 3 or 4"),
        ("-0.4\tb", "-0.4\tb\x07", 10, "control character"),
        ("ngram 2=3", "ngram 2=4", 17, r"declares \[5, 4\] n-grams, but holds \[5, 3\]"),
        ("ngram 2=3", "ngram 3=3", 3, "expected ngram 2=COUNT"),
        ("ngram 2=3", "ngrams", 3, "expected ngram 2=COUNT"),
        ("ngram 2=3\n", "", 16, r"declares \[5\]"),
        ("\\2-grams:", "\\3-grams:", 12, r"expected \\2-grams:"),
        ("\\end\\\n", "", 16, "truncated"),
        ("\\end\\\n", "\\end\\\n-0.3\tb a\n", 18, "has text after"),
        ("\\data\\", "data", 17, r"no line \\data\\"),
    ],
)
def test_a_wrong_line_is_refused_and_named(tmp_path, old, new, line, message):
    assert old in ARPA
    path = _saved(tmp_path, ARPA.replace(old, new))
    with pytest.raises(LanguageModelError, match=message) as caught:
        NGram.from_arpa(path)
    assert str(caught.value).startswith(f"{path}:{line}:")


PRUNED = r"""\data\
ngram 1=5
ngram 2=2
ngram 3=1
ngram 4=1

\1-grams:
-1.0	<unk>
-99	<s>	-0.3
-0.5	</s>
-0.2	a	-0.1
-0.4	b	-0.2

\2-grams:
-0.05	<s> a	-0.6
-0.3	a b	-0.07

\3-grams:
-0.02	b a b	-0.03

\4-grams:
-0.01	<s> b a b

\end\
"""


def test_contexts_that_pruning_removed_are_added():
    model = NGram.from_arpa_lines(PRUNED.splitlines())
    # "b a" for "b a b"; "<s> b a" for "<s> b a b"; "<s> b" for "<s> b a".
    assert model.counts() == [5, 4, 2, 1]
    state, total = model.begin, []
    for word in ("b", "a", "b"):
        log_prob, state = model.score(state, word)
        total.append(log_prob / math.log(10))
    # p(b | <s>) = bow(<s>) p(b); p(a | <s> b) = bow(b) p(a); p(b | <s> b a) is stored.
    assert total == pytest.approx([-0.3 - 0.4, -0.2 - 0.2, -0.01])
    assert model.end(state) / math.log(10) == pytest.approx(-0.03 - 0.07 - 0.2 - 0.5)
    assert NGram.from_arpa_lines(model.arpa_lines()).counts() == model.counts()


@pytest.mark.parametrize("text", [ARPA, ARPA.replace("<unk>", "<UNK>"), PRUNED])
def test_scores_equal_kenlm(tmp_path, text):
    kenlm = pytest.importorskip("kenlm", reason="kenlm is not installed: it needs a C++ compiler")
    path = _saved(tmp_path, text)
    ours = NGram.from_arpa(path)
    if text == PRUNED:
        # KenLM refuses n-grams without their context, but reads what we write.
        ours.write_arpa(path)
    theirs = kenlm.Model(str(path))
    for length in range(5):
        for words in itertools.product(["a", "b", "zz"], repeat=length):
            assert _log10(ours, words) == pytest.approx(theirs.score(" ".join(words)), abs=1e-4), words


def test_scores_without_suffixes_of_ngrams_equal_kenlm(tmp_path):
    kenlm = pytest.importorskip("kenlm", reason="kenlm is not installed: it needs a C++ compiler")
    lines = list(estimate(_sentences(), order=3).model.arpa_lines())
    trigrams = [line.split("\t")[1].split(" ") for line in lines[lines.index("\\3-grams:") + 1 :] if "\t" in line]
    contexts, suffixes = {" ".join(words[:2]) for words in trigrams}, {" ".join(words[1:]) for words in trigrams}
    removed = sorted(suffixes - contexts)[:20]
    kept = [line for line in lines if line.count("\t") != 2 or line.split("\t")[1] not in removed]
    count = next(line for line in lines if line.startswith("ngram 2="))
    left = int(count.partition("=")[2]) - 20
    path = _saved(tmp_path, "\n".join(kept).replace(count, f"ngram 2={left}"))
    ours, theirs = NGram.from_arpa(path), kenlm.Model(str(path))
    assert ours.counts()[1] == left
    for words in [*_sentences(40), *(gram.split() for gram in removed), *(words[:2] for words in trigrams[:200])]:
        words = [word for word in words if word not in ("<s>", "</s>")]
        assert ours.sentence_log_prob(words) / math.log(10) == pytest.approx(theirs.score(" ".join(words)), abs=1e-3)


def test_damaged_kenlm_binary_is_an_error(tmp_path):
    pytest.importorskip("kenlm", reason="kenlm is not installed: it needs a C++ compiler")
    path = _saved(tmp_path, b"mmap lm http://kheafield.com/code format version 5\n\0" + bytes(50), "lm.bin")
    with pytest.raises(LanguageModelError, match=r"lm\.bin: cannot be read by KenLM"):
        read_language_model(path)


@pytest.mark.parametrize("mark", ["<s>", "</S>", "<UNK>", "<oov>"])
def test_marks_in_any_case_are_no_words_of_a_text(mark):
    with pytest.raises(LanguageModelError, match="expected no marks"):
        estimate([["a", mark]], order=2)


def test_unknown_words_of_an_upper_case_model_cost_its_own_price_in_a_search():
    model = NGram.from_arpa_lines(_upper(ARPA).splitlines())
    labels = [None, None, "a", "b", "z", " "]
    options = {"model": model, "weight": 1.0, "word_score": 0.0, "unknown_score": 0.0}
    words = Words(
        labels, **options, vocabulary=model.vocabulary, unknown_log_prob=model.unknown_log_prob, unknown_alike=True
    )
    row = words.rows([words.begin])[0]
    assert row[4] == pytest.approx(-1.0 * math.log(10))
    assert (row[2], row[3]) == (0.0, 0.0)
