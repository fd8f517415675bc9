"""Evaluation of splits: what is computed, written and printed."""

import json
from dataclasses import replace

import pytest
from rich.console import Console

from ssl_asr.data.languages import language_code, language_tag
from ssl_asr.data.text import get_normalizers
from ssl_asr.errors import ConfigError, ManifestError
from ssl_asr.metrics.evaluation import Detail, evaluate_split, report, with_reference
from ssl_asr.metrics.provenance import Clock
from ssl_asr.metrics.report import Prediction, read_predictions
from ssl_asr.types import Skip

NORMALIZERS = get_normalizers(["lower", "none"])
SHOWN = {"samples": 1, "clock": Clock()}
DETAIL = Detail(by=["speaker"], confusions=5, worst=5)


def _prediction(i, ref, hyp, detected=None, **tags):
    return Prediction(f"u{i}", ref, hyp, 0.0, 1.0, "", lang="en", tags=tags, detected=detected)


ROWS = [
    _prediction(0, "a b c", "A x c", speaker="ann", translation="one"),
    _prediction(1, "a b", "a b", speaker="bob", translation="two"),
]
SKIPPED = [Skip("u9", "m.jsonl:9", "missing_file", "no such file")]


def test_report_writes_predictions_and_results(tmp_path):
    console = Console(record=True, width=160)
    found = report(
        {"test": ROWS},
        {"test": SKIPPED},
        normalizers=NORMALIZERS,
        folder=tmp_path,
        console=console,
        samples=1,
        clock=Clock(),
    )
    assert found["test"].wer == pytest.approx(1 / 5)
    assert read_predictions(tmp_path / "predictions" / "test.jsonl") == ROWS
    written = json.loads((tmp_path / "results.json").read_text())["test"]
    assert list(written) == ["scores", "skipped"]
    assert written["scores"]["none"]["wer"] == pytest.approx(2 / 5)
    assert written["skipped"][0]["id"] == "u9"
    shown = console.export_text()
    assert "test; 1 not scored: u9" in shown
    assert "Most frequent errors" not in shown


def test_languages_are_compared_by_their_codes():
    langs = [("zh_cn", "zh"), ("cmn_hans_cn", "zh"), ("zh", "yue"), ("jv", "jw"), ("zh-TW", "zh")]
    rows = [replace(_prediction(i, "a", "b", detected=detected), lang=lang) for i, (lang, detected) in enumerate(langs)]
    detail = Detail(by=["lang"], confusions=0, worst=0, language_code=language_code, language_tag=language_tag)
    found = evaluate_split("test", rows, [], NORMALIZERS, detail)
    assert [(one.lang, one.utterances, one.accuracy) for one in found.languages] == [("jv", 1, 1.0), ("zh", 4, 0.75)]
    assert [(group.value, group.utterances) for group in found.breakdown.groups["lang"]] == [
        ("jv", 1),
        ("zh", 3),
        ("zh-TW", 1),
    ]


@pytest.mark.parametrize("lang", ["zh", "zh_cn", "cmn", "cmn_hans_cn", "Mandarin", "xx", None])
@pytest.mark.parametrize("name", ["none", "lower", "basic", "whisper_basic", "by_language"])
def test_scores_of_chinese_count_characters_under_every_code(tmp_path, name, lang):
    row = replace(_prediction(0, "今天天气好", "今天 天汽好"), lang=lang)
    console = Console(record=True, width=160)
    report({"t": [row]}, {}, normalizers=get_normalizers([name]), folder=tmp_path, console=console, **SHOWN)
    score = json.loads((tmp_path / "results.json").read_text())["t"]["scores"][name]
    assert (score["wer"], score["cer"], score["wer_unit"]) == (0.2, 0.2, "characters")
    assert "characters" in console.export_text()


def test_detail_adds_languages_and_breakdown():
    rows = [_prediction(0, "a b", "a x", detected="en", speaker="ann"), _prediction(1, "a", "a", detected="nl")]
    found = evaluate_split("test", rows, [], NORMALIZERS, DETAIL)
    written = found.as_dict()
    assert list(written) == ["scores", "skipped", "languages", "by", "confusions", "worst"]
    assert written["languages"] == [
        {"lang": "en", "utterances": 2, "taken_for": {"en": 1, "nl": 1}, "accuracy": 0.5},
    ]
    assert [(row["value"], row["wer"]) for row in written["by"]["speaker"]] == [("(none)", 0.0), ("ann", 0.5)]
    assert written["confusions"] == [{"operation": "sub", "ref": "b", "hyp": "x", "count": 1}]
    assert written["worst"] == ["u0"]


def test_translation_replaces_breakdown():
    detail = Detail(by=[], confusions=5, worst=5, translation=True)
    found = evaluate_split("test", ROWS, [], NORMALIZERS, detail)
    assert [score.name for score in found.translation] == ["BLEU", "chrF2"]
    assert list(found.as_dict()) == ["scores", "skipped", "translation"]


def test_split_without_predictions_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="test: no utterance was transcribed"):
        report({"test": []}, {}, normalizers=NORMALIZERS, folder=tmp_path, console=None, samples=0, clock=Clock())
    assert not list(tmp_path.rglob("*.jsonl"))


def test_predictions_are_written_before_an_unknown_tag_is_refused(tmp_path):
    detail = Detail(by=["dialect"], confusions=5, worst=5)
    with pytest.raises(ConfigError, match="no utterance has the tag 'dialect'"):
        report(
            {"t": ROWS},
            {},
            normalizers=NORMALIZERS,
            folder=tmp_path,
            console=None,
            samples=0,
            clock=Clock(),
            detail=detail,
        )
    assert len(read_predictions(tmp_path / "predictions" / "t.jsonl")) == 2


def test_reference_can_be_another_key_of_the_manifest():
    assert [row.ref for row in with_reference(ROWS, "translation")] == ["one", "two"]
    assert with_reference(ROWS, "text") == ROWS
    with pytest.raises(ConfigError, match="reference: 2 utterances have no 'summary', the first is u0"):
        with_reference(ROWS, "summary")


def test_without_a_console_the_scores_are_one_line_for_each_split(tmp_path, capsys):
    shared = {"normalizers": NORMALIZERS, "console": None, "samples": 0, "clock": Clock()}
    report({"a": ROWS, "b": ROWS[1:]}, {"a": SKIPPED}, folder=tmp_path, **shared)
    assert capsys.readouterr().out.splitlines() == [
        "a: WER 20.00 % (lower), WER 40.00 % (none), 2 utterances, 1 not scored",
        "b: WER 0.00 % (lower), WER 0.00 % (none), 1 utterances",
    ]
    detail = Detail(by=[], confusions=0, worst=0, translation=True)
    report({"a": ROWS}, {}, folder=tmp_path, detail=detail, **shared)
    assert capsys.readouterr().out.startswith("a: BLEU ")


def test_results_say_what_was_run_and_spell_deletions(tmp_path):
    about = {"model": "runs/a", "checkpoints": {"test": "runs/a/checkpoints/best.ckpt"}}
    row = _prediction(0, "a b c", "a", speaker="ann")
    options = {"normalizers": NORMALIZERS, "console": None, "samples": 0, "clock": Clock(), "detail": DETAIL}
    report({"test": [row]}, {}, folder=tmp_path, about=about, **options)
    written = json.loads((tmp_path / "results.json").read_text())
    assert {key: written["run"][key] for key in about} == about
    assert "command" in written["run"]
    edits = {"sub": 0, "ins": 0, "del": 2, "ref": 3}
    assert written["test"]["scores"]["lower"]["words"] == edits
    assert written["test"]["by"]["speaker"][0]["words"] == edits
    assert '"dele"' not in (tmp_path / "results.json").read_text()
