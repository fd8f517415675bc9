"""Several references an utterance: the closest one counts, in every score and after every way through a file."""

import json
import random
from dataclasses import replace

import jiwer
import pytest
import sacrebleu

from ssl_asr.data.text import get_normalizers
from ssl_asr.errors import ConfigError, ManifestError
from ssl_asr.metrics.breakdown import break_down
from ssl_asr.metrics.edit import closest, word_edits
from ssl_asr.metrics.evaluation import Detail, evaluate_split, with_reference
from ssl_asr.metrics.report import Prediction, read_predictions, score_predictions, write_predictions
from ssl_asr.metrics.significance import compare
from ssl_asr.metrics.translation import translation_scores
from ssl_asr.types import Hypothesis, Utterance

LOWER = get_normalizers(["lower"])["lower"]
WORDS = ["the", "colour", "color", "of", "a", "an", "Tree", "is", "gray", "grey"]


def text(rng, fewest=1):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(fewest, 7)))


def predictions(seed, count=60):
    """Hypotheses with one to four references each, which share many words."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        ref, *others = (text(rng) for _ in range(rng.randint(1, 4)))
        tags = {"speaker": rng.choice("ab")}
        rows.append(Prediction(f"u{number:02}", ref, text(rng, 0), 0.0, 1.0, "", references=others, tags=tags))
    return rows


def counts(found):
    return found.substitutions, found.insertions, found.deletions, found.hits + found.substitutions + found.deletions


def brute_force(rows, process):
    """Sums of the counts of jiwer for the reference with the fewest errors, the first one of several."""
    totals = [0, 0, 0, 0]
    for row in rows:
        each = [counts(process(ref.lower(), row.hyp.lower())) for ref in row.refs]
        best = min(each, key=lambda one: sum(one[:3]))
        totals = [total + one for total, one in zip(totals, best, strict=True)]
    return totals


@pytest.mark.parametrize("seed", range(5))
def test_errors_are_the_fewest_over_all_references(seed):
    rows = predictions(seed)
    score = score_predictions(rows, "lower", LOWER)
    words, chars = brute_force(rows, jiwer.process_words), brute_force(rows, jiwer.process_characters)
    assert list(score.words.record().values()) == words
    assert list(score.chars.record().values()) == chars
    assert score.wer == sum(words[:3]) / words[3]
    first_only = score_predictions([replace(row, references=[]) for row in rows], "lower", LOWER)
    assert first_only.words.errors > score.words.errors


def test_ties_go_to_the_first_reference():
    assert closest(["a b c", "a b d e"], "a b", word_edits) == "a b c"
    assert closest(["x", "y z", "w"], "a", word_edits) == "x"
    row = Prediction("u", "a b", "a c", 0.0, 1.0, "", references=["a d", "q a c d"])
    assert row.pair(LOWER) == ("a b", "a c")


def test_words_and_characters_may_have_other_references():
    """One word error, three characters; or two word errors, two characters."""
    row = Prediction("u", "aaa b", "xxx b", 0.0, 1.0, "", references=["xx bb"])
    assert row.pairs(LOWER) == (("aaa b", "xxx b"), ("xx bb", "xxx b"))


def test_predictions_are_read_back_and_score_the_same(tmp_path):
    rows = predictions(7)
    write_predictions(tmp_path / "p.jsonl", rows)
    again = read_predictions(tmp_path / "p.jsonl")
    assert again == rows
    assert score_predictions(again, "lower", LOWER) == score_predictions(rows, "lower", LOWER)
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert ["references" in line for line in lines] == [bool(row.references) for row in rows]
    (tmp_path / "p.jsonl").write_text(json.dumps(lines[0] | {"references": "a"}) + "\n")
    with pytest.raises(ManifestError, match="is not a prediction: 'references' is 'a'"):
        read_predictions(tmp_path / "p.jsonl")


def test_a_prediction_has_the_references_of_its_utterance():
    utterance = Utterance("u", "", 1.0, text="a", references=("b", "c"))
    assert Prediction.of(utterance, Hypothesis("u", "b", 0.0)).refs == ["a", "b", "c"]


def test_groups_and_worst_utterances_count_the_closest_reference():
    rows = predictions(3)
    found = break_down(rows, LOWER, by=["speaker"], confusions=1000, worst=100)
    score = score_predictions(rows, "lower", LOWER)
    assert sum(group.words.errors for group in found.groups["speaker"]) == score.words.errors
    assert sum(group.words.ref for group in found.groups["speaker"]) == score.words.ref
    assert sum(one.count for one in found.confusions) == score.words.errors
    assert len(found.worst) == score.sentence_errors


def test_systems_are_compared_by_the_closest_reference_of_each():
    rows = predictions(4)
    others = [replace(row, hyp=row.refs[-1]) for row in rows]
    found = compare(rows, others, LOWER)
    assert found.first == score_predictions(rows, "lower", LOWER).words
    assert (found.second.errors, found.difference) == (0, -found.first.rate)
    # The interval is that of the difference of rates, though systems have other numbers of reference words.
    assert found.first.ref != found.second.ref
    assert found.low < found.difference < found.high < 0
    with pytest.raises(ManifestError, match="1 utterances have different references, the first is u00"):
        compare(rows, [replace(others[0], references=["z"]), *others[1:]], LOWER)


def test_translation_scores_are_those_of_sacrebleu_with_several_references():
    refs = [
        ["the cat sat on the mat", "a cat sat there"],
        ["it is raining now"],
        ["hello to you", "hi you", "hi there"],
    ]
    hyps = ["the cat sat there", "it rains now", "hi there to you"]
    lists = [[row[place] if place < len(row) else None for row in refs] for place in range(3)]
    bleu, chrf = translation_scores(refs, hyps)
    assert bleu.score == pytest.approx(sacrebleu.corpus_bleu(hyps, lists).score)
    assert chrf.score == pytest.approx(sacrebleu.corpus_chrf(hyps, lists).score)
    assert bleu.score > translation_scores([row[:1] for row in refs], hyps)[0].score
    rows = [
        Prediction(str(i), ref[0], hyp, 0.0, 1.0, "", references=ref[1:])
        for i, (ref, hyp) in enumerate(zip(refs, hyps, strict=True))
    ]
    detail = Detail(by=[], confusions=0, worst=0, translation=True)
    assert evaluate_split("t", rows, [], {"lower": LOWER}, detail).translation[0].score == pytest.approx(bleu.score)


def test_another_key_may_hold_a_list_of_references():
    row = Prediction(
        "u", "a", "b", 0.0, 1.0, "", tags={"one": "x", "more": ["x", "y", "x"], "bad": ["x", 1], "none": []}
    )
    assert [each.refs for each in with_reference([row], "one") + with_reference([row], "more")] == [["x"], ["x", "y"]]
    for key in ("bad", "none", "missing"):
        with pytest.raises(ConfigError, match=f"1 utterances have no '{key}'"):
            with_reference([row], key)
