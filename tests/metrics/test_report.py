"""Predictions survive their file, scores equal jiwer, and tables show alignments."""

import json
from dataclasses import replace

import jiwer
import numpy as np
import pytest
from rich.console import Console

from ssl_asr.data.text import get_normalizer
from ssl_asr.errors import ManifestError
from ssl_asr.metrics.report import (
    Prediction,
    bootstrap_interval,
    plain_diff,
    print_samples,
    print_scores,
    read_predictions,
    score_predictions,
    write_predictions,
)


@pytest.fixture
def predictions():
    rng = np.random.default_rng(0)
    rows = []
    for i in range(60):
        ref = " ".join(rng.choice(["one", "two", "three", "four"], size=rng.integers(1, 8)))
        hyp = " ".join(w.upper() for w in ref.split() if rng.random() > 0.15)
        rows.append(Prediction(f"u{i:02d}", ref, hyp, -0.1 * i, 1.5, f"/x/{i}.wav", lang="en", tags={"speaker": "s"}))
    return rows


def test_scores_from_file_equal_scores_from_memory(tmp_path, predictions):
    lower = get_normalizer("lower")
    before = score_predictions(predictions, "lower", lower)
    write_predictions(tmp_path / "p.jsonl", predictions[::-1])
    after = score_predictions(read_predictions(tmp_path / "p.jsonl"), "lower", lower)
    assert after == before
    assert before.wer == pytest.approx(jiwer.wer([p.ref for p in predictions], [p.hyp.lower() for p in predictions]))
    assert before.wer_low < before.wer < before.wer_high
    assert json.loads(json.dumps(before.as_dict()))["wer"] == before.wer
    assert not list(tmp_path.glob("*.partial"))


def test_score_depends_on_normalizer_and_names_it(predictions):
    raw = score_predictions(predictions, "none", get_normalizer("none"))
    assert raw.wer == pytest.approx(1.0)
    assert raw.normalizer == "none"


def test_bootstrap_interval_covers_known_rate():
    """With errors drawn at 10 %, about 95 of 100 intervals contain 0.1."""
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(60):
        refs = rng.integers(5, 15, 150)
        low, high = bootstrap_interval(rng.binomial(refs, 0.1), refs, seed)
        hits += low <= 0.1 <= high
    assert 50 <= hits <= 60
    assert bootstrap_interval(np.array([1, 2]), np.array([0, 0]))[0] != 0


_RECORD = b'{"id": "a", "ref": %s, "hyp": "x", "score": 0, "duration": 1, "audio_filepath": "a.wav", "lang": %s}'


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b'{"id": "a"}', "is not a prediction: it has no 'ref'. Give a file that evaluate or transcribe"),
        (_RECORD.replace(b'"hyp"', b'"hypothesis"') % (b'"x"', b"null"), "is not a prediction: it has no 'hyp'"),
        (
            _RECORD.replace(b'"id"', b'"x": 1, "id"') % (b'"x"', b"null"),
            "is not a prediction: it has the unknown key 'x'",
        ),
        (b"5", "is not a prediction: it is not a mapping"),
        (b'{"id": "\xff"}', "is not UTF-8"),
        (b'{"score": %s}' % (b"9" * 5000), "has a number with thousands of digits"),
        (b"[" * 9999, "is nested more than 100 levels deep"),
        (b'{"id": "a', "is not valid JSON"),
        (_RECORD % (b'"x"', b'["en"]'), r"is not a prediction: 'lang' is \['en'\]"),
        (_RECORD % (b"7", b"null"), "is not a prediction: 'ref' is 7"),
    ],
)
def test_invalid_prediction_error_names_its_line(tmp_path, line, what):
    (tmp_path / "p.jsonl").write_bytes(b"\n" + line + b"\n")
    with pytest.raises(ManifestError, match=rf"p\.jsonl:2: .*{what}"):
        read_predictions(tmp_path / "p.jsonl")


def test_a_manifest_is_not_taken_for_predictions(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"audio_filepath": "a.wav", "text": "a", "id": "1"}\n')
    with pytest.raises(ManifestError, match=r"m.jsonl:1: is a line of a manifest.*write manifest=.*m.jsonl model="):
        read_predictions(path)


def test_tables_show_alignments_and_scores(predictions):
    assert plain_diff("a b c", "a x c d") == "a [b→x] c +d"
    assert plain_diff("a b", "b") == "-a b"
    console = Console(record=True, width=160)
    lower = get_normalizer("lower")
    print_samples(predictions, lower, console, 3)
    print_scores("dev", [score_predictions(predictions, "lower", lower)], console)
    shown = console.export_text()
    assert shown.count("│ u") == 3
    assert "of 60" in shown
    print_samples(predictions, lower, console, 0)
    assert console.export_text() == ""


def test_recording_with_two_lines_is_refused_with_both_line_numbers(tmp_path):
    path = tmp_path / "p.jsonl"
    rows = [Prediction(name, "x", "y", 0.0, 1.0, f"{name}.wav") for name in ("a", "b")]
    rows += [replace(rows[0], hyp="z"), replace(rows[0], audio_filepath="c.wav"), replace(rows[0], offset=1.0)]
    lines = [json.dumps(row.record()) + "\n" for row in rows]
    path.write_text("".join(lines))
    with pytest.raises(ManifestError, match=r"p\.jsonl:3: 'a' is the recording of line 1, and would be scored twice"):
        read_predictions(path)
    path.write_text("".join([*lines[:2], *lines[3:]]))
    assert len(read_predictions(path)) == 4


def test_a_loop_of_a_decoder_is_cut_in_the_table_of_samples():
    console = Console(width=120, record=True)
    loop = Prediction(
        id="a", ref="one two", hyp="one two " + "and so on " * 100, score=0.0, duration=2.0, audio_filepath="a"
    )
    print_samples([loop], lambda text, _: text, console)
    shown = console.export_text()
    assert "one two +and +so +on" in shown
    assert "…" in shown
    assert shown.count("+so") < 40
