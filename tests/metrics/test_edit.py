"""Edit counts against jiwer, alignments against a plain dynamic program, and error rates of a corpus."""

import random

import jiwer
import pytest
import torch

from ssl_asr.metrics.edit import Edits, align, char_edits, count_edits, word_edits
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


def _plain_alignment(ref, hyp):
    """The alignment of `align`, from a table of distances."""
    table = [[i + j if 0 in (i, j) else 0 for j in range(len(hyp) + 1)] for i in range(len(ref) + 1)]
    for i in range(1, len(ref) + 1):
        for j in range(1, len(hyp) + 1):
            diagonal = table[i - 1][j - 1] + (ref[i - 1] != hyp[j - 1])
            table[i][j] = min(diagonal, table[i - 1][j] + 1, table[i][j - 1] + 1)
    steps, i, j = [], len(ref), len(hyp)
    while i or j:
        if i and j and table[i][j] == table[i - 1][j - 1] + (ref[i - 1] != hyp[j - 1]):
            i, j = i - 1, j - 1
            steps.append(("match" if ref[i] == hyp[j] else "sub", ref[i], hyp[j]))
        elif i and table[i][j] == table[i - 1][j] + 1:
            i -= 1
            steps.append(("del", ref[i], ""))
        else:
            j -= 1
            steps.append(("ins", "", hyp[j]))
    return steps[::-1]


@pytest.mark.parametrize("vocabulary", ["ab", "abcd", "abcdefghijklmnopqrstuvwxyz"])
def test_alignment_and_counts_equal_those_of_a_plain_dynamic_program(vocabulary):
    draw = random.Random(len(vocabulary))
    for _ in range(400):
        ref, hyp = ([draw.choice(vocabulary) for _ in range(draw.randint(0, 14))] for _ in range(2))
        expected = _plain_alignment(ref, hyp)
        assert align(ref, hyp) == expected
        operations = [operation for operation, _, _ in expected]
        counts = Edits(operations.count("sub"), operations.count("ins"), operations.count("del"), len(ref))
        assert count_edits(ref, hyp) == counts
        assert count_edits("".join(ref), "".join(hyp)) == counts


def test_ambiguous_counts_are_those_of_the_alignment(monkeypatch):
    ref, hyp = ["b", "a", "d", "a", "b", "a"], ["c", "c", "a", "b", "b", "a", "d", "b", "a"]
    assert count_edits(ref, hyp) == Edits(0, 4, 1, 6), "2 substitutions and 3 insertions are as short"
    monkeypatch.setattr("ssl_asr.metrics.edit._MAX_WEIGHTED_CELLS", 0)
    assert count_edits(ref, hyp) == Edits(0, 4, 1, 6)


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


@pytest.mark.parametrize("most", [1, 4, 30])
def test_split_alignment_is_as_short_as_whole_alignment(monkeypatch, most):
    draw = random.Random(most)
    for _ in range(200):
        ref, hyp = ([draw.choice("abc") for _ in range(draw.randint(0, 14))] for _ in range(2))
        whole = count_edits(ref, hyp)
        monkeypatch.setattr("ssl_asr.metrics.edit._MAX_CELLS", most)
        parts = align(ref, hyp)
        assert count_edits(ref, hyp).errors == whole.errors
        monkeypatch.undo()
        assert [old for operation, old, _ in parts if operation != "ins"] == ref
        assert [new for operation, _, new in parts if operation != "del"] == hyp
        assert all((operation == "match") == (old == new) for operation, old, new in parts)


@pytest.mark.parametrize("moved", [0, 40, 150, 299])
def test_split_alignment_is_minimal_for_shifted_texts(monkeypatch, moved):
    draw = random.Random(moved)
    ref = [draw.choice("abcdefgh") for _ in range(300)]
    hyp = [draw.choice("xyz") if draw.random() < 0.1 else token for token in ref[moved:] + ref[:moved]]
    whole = count_edits(ref, hyp).errors
    monkeypatch.setattr("ssl_asr.metrics.edit._MAX_CELLS", 100)
    assert count_edits(ref, hyp).errors == whole
