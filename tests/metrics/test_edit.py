"""Edit counts against jiwer, units of each script by hand, and error rates of a corpus."""

import random
import unicodedata

import jiwer
import pytest
import torch

from ssl_asr.metrics.edit import Edits, align, char_edits, count_edits, wer_unit, word_edits, word_units
from ssl_asr.metrics.error_rate import ErrorRate


def _texts(seed, count=200):
    rng = random.Random(seed)
    words = ["a", "b", "c", "dd", "naïve"]
    for _ in range(count):
        ref = [rng.choice(words) for _ in range(rng.randint(1, 12))]
        hyp = [w for w in ref if rng.random() > 0.2]
        hyp = [rng.choice(words) if rng.random() < 0.2 else w for w in hyp]
        for _ in range(rng.randint(0, 2)):
            hyp.insert(rng.randint(0, len(hyp)), rng.choice(words))
        yield " ".join(ref), " ".join(hyp)


def test_errors_equal_jiwer():
    pairs = list(_texts(0))
    for ref, hyp in pairs:
        reference, ours = jiwer.process_words(ref, hyp), word_edits(ref, hyp)
        assert ours.errors == reference.substitutions + reference.insertions + reference.deletions
        assert ours.ref == reference.hits + reference.substitutions + reference.deletions
        assert ours.ref - ours.sub - ours.dele == len(hyp.split()) - ours.sub - ours.ins
        assert char_edits(ref, hyp).rate == pytest.approx(jiwer.cer(ref, hyp))
    refs, hyps = zip(*pairs, strict=True)
    wer, cer = ErrorRate(word_edits), ErrorRate(char_edits)
    for start in range(0, 200, 17):
        wer.update(refs[start : start + 17], hyps[start : start + 17])
        cer.update(refs[start : start + 17], hyps[start : start + 17])
    assert float(wer.compute()) == pytest.approx(jiwer.wer(list(refs), list(hyps)), abs=1e-12)
    assert float(cer.compute()) == pytest.approx(jiwer.cer(list(refs), list(hyps)), abs=1e-12)


def test_alignment_contains_both_sequences_in_order():
    for ref, hyp in _texts(1, 50):
        operations = align(ref.split(), hyp.split())
        assert [old for _, old, _ in operations if old] == ref.split()
        assert [new for _, _, new in operations if new] == hyp.split()
        assert all((old == new) == (operation == "match") for operation, old, new in operations)


def _table(ref, hyp):
    """Plain table of distances."""
    table = [[i + j if 0 in (i, j) else 0 for j in range(len(hyp) + 1)] for i in range(len(ref) + 1)]
    for i in range(1, len(ref) + 1):
        for j in range(1, len(hyp) + 1):
            diagonal = table[i - 1][j - 1] + (ref[i - 1] != hyp[j - 1])
            table[i][j] = min(diagonal, table[i - 1][j] + 1, table[i][j - 1] + 1)
    return table


@pytest.mark.parametrize("vocabulary", ["ab", "abcd", "abcdefghijklmnopqrstuvwxyz"])
def test_errors_equal_a_plain_dynamic_program_and_counts_are_those_of_the_alignment(vocabulary):
    draw = random.Random(len(vocabulary))
    for _ in range(400):
        ref, hyp = ([draw.choice(vocabulary) for _ in range(draw.randint(0, 14))] for _ in range(2))
        operations = [operation for operation, _, _ in align(ref, hyp)]
        counts = Edits(operations.count("sub"), operations.count("ins"), operations.count("del"), len(ref))
        assert counts.errors == _table(ref, hyp)[-1][-1]
        assert count_edits(ref, hyp) == counts
        assert count_edits("".join(ref), "".join(hyp)) == counts


@pytest.mark.parametrize("vocabulary", ["ab", "abcd", "abcdefghijklmnop"])
def test_substitutions_insertions_and_deletions_equal_jiwer_on_ties(vocabulary):
    draw = random.Random(len(vocabulary))
    for _ in range(1500):
        ref, hyp = ([draw.choice(vocabulary) for _ in range(draw.randint(least, 25))] for least in (1, 0))
        ref, hyp = " ".join(ref), " ".join(hyp)
        for output, ours in (
            (jiwer.process_words(ref, hyp), word_edits(ref, hyp)),
            (jiwer.process_characters(ref, hyp), char_edits(ref, hyp)),
        ):
            assert (ours.sub, ours.ins, ours.dele) == (output.substitutions, output.insertions, output.deletions)


def test_a_tie_falls_as_in_jiwer():
    ref, hyp = "b a d a b a", "c c a b b a d b a"
    theirs, ours = jiwer.process_words(ref, hyp), word_edits(ref, hyp)
    assert ours.errors == 5, "0 + 4 + 1 and 2 + 3 + 0 are as short"
    assert (ours.sub, ours.ins, ours.dele) == (theirs.substitutions, theirs.insertions, theirs.deletions)


# Reference, hypothesis, units of the WER of the reference, edits by hand, and the unit's name.
UNITS = [
    ("我们爱学习", "我们爱学校", "我 们 爱 学 习", Edits(1, 0, 0, 5), "characters"),
    ("我 们 爱 学习", "我们 爱学校", "我 们 爱 学 习", Edits(1, 0, 0, 5), "characters"),
    ("你好，世界。", "你好世界", "你 好 ， 世 界 。", Edits(0, 0, 2, 6), "characters"),
    ("コーヒーを飲む", "コーヒを飲む", "コ ー ヒ ー を 飲 む", Edits(0, 0, 1, 7), "characters"),
    ("ขอบคุณ", "ขอบคุน", "ข อ บ ค ุ ณ", Edits(1, 0, 0, 6), "characters"),
    ("ຂອບໃຈ", "ຂອບໃ", "ຂ ອ ບ ໃ ຈ", Edits(0, 0, 1, 5), "characters"),
    ("អរគុណ", "អរគុ", "អ រ គ ុ ណ", Edits(0, 0, 1, 5), "characters"),
    ("မင်္ဂလာ", "မင်္ဂလ", "မ င ် ္ ဂ လ ာ", Edits(0, 0, 1, 7), "characters"),
    ("我用 iPhone 手机", "我用iPad手机", "我 用 iPhone 手 机", Edits(1, 0, 0, 5), "mixed"),
    ("then 他说 thank you", "then 她说 thank you", "then 他 说 thank you", Edits(1, 0, 0, 5), "mixed"),
    ("2023年", "2024年", "2023 年", Edits(1, 0, 0, 2), "mixed"),
    ("안녕하세요 여러분", "안녕하세요", "안녕하세요 여러분", Edits(0, 0, 1, 2), "words"),
    ("韓國 사람", "한국 사람", "韓國 사람", Edits(1, 0, 0, 2), "words"),
    ("नमस्ते दुनिया", "नमस्ते", "नमस्ते दुनिया", Edits(0, 0, 1, 2), "words"),
    ("hello there", "你好", "hello there", Edits(1, 0, 1, 2), "words"),
    ("", "你好", "", Edits(0, 2, 0, 0), "characters"),
    ("", "hello there", "", Edits(0, 2, 0, 0), "words"),
]


@pytest.mark.parametrize(("ref", "hyp", "units", "edits", "unit"), UNITS)
def test_units_of_each_script(ref, hyp, units, edits, unit):
    assert word_units(ref, hyp)[0] == units.split()
    assert word_edits(ref, hyp) == edits
    assert wer_unit([(ref, hyp)]) == unit


@pytest.mark.parametrize("row", [row for row in UNITS if row[4] == "characters" and row[0]])
def test_both_rates_equal_the_cer_of_jiwer_in_scripts_without_spaces(row):
    ref, hyp = row[:2]
    expected = jiwer.cer(ref.replace(" ", ""), hyp.replace(" ", ""))
    assert char_edits(ref, hyp).rate == pytest.approx(expected)
    assert word_edits(ref, hyp).rate == pytest.approx(expected)


def test_mixed_text_has_no_spaces_in_its_cer():
    ref, hyp = "我用 iPhone 手机", "我用iPhone手机"
    assert char_edits(ref, hyp) == Edits(0, 0, 0, 10)


def test_composed_and_decomposed_characters_are_equal():
    ref, hyp = "ガ", unicodedata.normalize("NFD", "ガ")
    assert len(hyp) == 2
    assert word_edits(ref, hyp) == char_edits(ref, hyp) == Edits(0, 0, 0, 1)


def test_unit_of_a_corpus_is_mixed_if_its_utterances_differ():
    chinese, english = ("你好", "你好"), ("hello", "hello")
    assert [wer_unit(pairs) for pairs in ([chinese], [english], [chinese, english])] == ["characters", "words", "mixed"]
    assert wer_unit([chinese, ("", "")]) == "characters"
    assert wer_unit([]) == "words"


def test_long_sequences_are_aligned():
    draw = random.Random(0)
    ref = [str(draw.randrange(500)) for _ in range(10_000)]
    hyp = ["x" if draw.random() < 0.1 else word for word in ref[:5000] + ["y"] * 50 + ref[5000:]]
    steps = align(ref, hyp)
    assert [new for operation, _, new in steps if operation != "del"] == hyp
    assert sum(operation != "match" for operation, _, _ in steps) == count_edits(ref, hyp).errors


@pytest.mark.parametrize(
    ("ref", "hyp", "edits"),
    [
        ("a b c", "a b c", Edits(0, 0, 0, 3)),
        ("a b c", "", Edits(0, 0, 3, 3)),
        ("", "a b", Edits(0, 2, 0, 0)),
        ("", "", Edits(0, 0, 0, 0)),
        ("a", "b c", Edits(1, 1, 0, 1)),
        ("  a   b ", "a b", Edits(0, 0, 0, 2)),
    ],
)
def test_edits_of_small_examples(ref, hyp, edits):
    assert word_edits(ref, hyp) == edits


def test_rates_of_empty_references_are_defined():
    assert Edits(0, 0, 0, 0).rate == 0.0
    assert Edits(0, 2, 0, 0).rate == float("inf")
    mixed = ErrorRate(word_edits)
    mixed.update(["", "a b"], ["x", "a b"])
    assert float(mixed.compute()) == 0.5, "an insertion against an empty reference counts in the corpus"
    assert str(float(ErrorRate(word_edits).compute())) == "nan"


def test_lists_of_unequal_length_raise():
    with pytest.raises(ValueError, match="2 references and 1 hypotheses"):
        ErrorRate(word_edits).update(["a", "b"], ["a"])


def test_counts_are_exact_beyond_float32_precision():
    metric = ErrorRate(word_edits)
    metric.counts += torch.tensor([2**24, 0, 0, 2**26])
    metric.update(["a b"], ["x b"])
    assert metric.totals() == Edits(2**24 + 1, 0, 0, 2**26 + 2)


def test_corpus_rate_is_not_the_mean_of_batch_rates():
    metric = ErrorRate(word_edits)
    metric.update(["a"], ["b"])
    metric.update(["a b c d e f g h i j"], ["a b c d e f g h i j"])
    assert float(metric.compute()) == pytest.approx(1 / 11)


def test_characters_outside_the_basic_multilingual_plane_count_once():
    assert count_edits("a😀b", "a😀").errors == 1
