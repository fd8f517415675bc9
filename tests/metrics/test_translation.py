"""Translation scores equal those of sacrebleu; language detection is counted by language."""

import pytest
import sacrebleu

from ssl_asr.errors import ManifestError
from ssl_asr.metrics.translation import language_scores, translation_scores

REFS = ["The cat sat on the mat.", "A dog barks at night.", "Nobody was there."]
HYPS = ["The cat sat on a mat.", "A dog barks at night.", "There was nobody."]


def test_corpus_scores_equal_sacrebleu():
    bleu, chrf = translation_scores([[ref] for ref in REFS], HYPS)
    assert bleu.score == pytest.approx(sacrebleu.corpus_bleu(HYPS, [REFS]).score)
    assert chrf.score == pytest.approx(sacrebleu.corpus_chrf(HYPS, [REFS]).score)
    assert "tok:13a" in bleu.signature
    assert "case:mixed" in bleu.signature
    assert 0 < bleu.margin < 100
    perfect = translation_scores([[ref] for ref in REFS], REFS)
    assert [one.score for one in perfect] == pytest.approx([100.0, 100.0])


def test_one_segment_is_scored_and_no_segment_is_refused():
    assert translation_scores([REFS[:1]], REFS[:1])[0].score == pytest.approx(100.0)
    with pytest.raises(ManifestError, match="no utterance"):
        translation_scores([], [])


def test_detected_languages_are_counted_for_each_language():
    german, spanish = language_scores([("es", "es"), ("de", "nl"), ("de", "de"), ("de", "de")])
    assert (german.lang, german.utterances, german.taken_for) == ("de", 3, {"de": 2, "nl": 1})
    assert german.accuracy == pytest.approx(2 / 3)
    assert spanish.accuracy == 1.0
