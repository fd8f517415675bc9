"""Pictures of a report: drawn by a model that is loaded, or stored by the W&B logger."""

import re

import pytest

from ssl_asr.data.text import get_normalizers
from ssl_asr.errors import CheckpointError
from ssl_asr.metrics.report import read_predictions, write_predictions
from ssl_asr.report import drawn
from ssl_asr.report.runs import find_runs
from ssl_asr.report.scored import Scored, score
from ssl_asr.report.sounds import Sounds
from ssl_asr.report.stored import stored_section
from tests.report.runs import make_run
from tests.training.toy_runs import build, toy_overrides


@pytest.fixture
def scored(tmp_path) -> Scored:
    folder = make_run(tmp_path / "a", splits=["test"], metrics=False)
    (folder / "checkpoints").mkdir()
    path = folder / "predictions" / "test.jsonl"
    write_predictions(path, read_predictions(path)[:6])
    [run] = find_runs([str(folder)])
    return score(run, list(get_normalizers(["lower"])), None)


@pytest.mark.parametrize(
    ("family", "kind", "more"),
    [("wav2vec2_layer", "posteriors", []), ("whisper", "attention", ["backbone=whisper_tiny_en", "task=seq2seq"])],
)
def test_two_utterances_are_drawn(scored, family, kind, more, toy_checkpoints, toy_corpus, tmp_path, monkeypatch):
    module = build(tmp_path, *toy_overrides(toy_checkpoints[family], toy_corpus), *more).module.eval()
    loaded = []
    monkeypatch.setattr(drawn, "load_model", lambda name, options: loaded.append((name, options)) or module)
    html = drawn.drawn_section(scored, Sounds("none", 1.0, tmp_path / "r.html"), ["their_package"])
    assert loaded[0][0] == str(scored.run.path)
    assert loaded[0][1].extensions == ("their_package",)
    assert re.findall(r"<b>(\w+)</b>", html) == ["u00", "u03"]
    assert html.count(f"<figcaption>{kind}") == 2
    assert html.count("data:image/png") == 2


def test_why_there_is_no_picture_is_said(scored, tmp_path, monkeypatch):
    def refuse(name, options):
        raise CheckpointError(name, "is <damaged>")

    monkeypatch.setattr(drawn, "load_model", refuse)
    html = drawn.drawn_section(scored, Sounds("none", 1.0, tmp_path / "r.html"), [])
    assert "No pictures: " in html
    assert "is &lt;damaged&gt;" in html


def test_the_last_stored_pictures_are_shown(scored):
    folder = scored.run.path / "wandb" / "offline-run-1" / "files" / "media" / "images" / "val" / "attention"
    folder.mkdir(parents=True)
    for name in ("1_9_ab.png", "1_20_cd.png", "2_20_ef.png", "other.png"):
        (folder / name).write_bytes(name.encode())
    html = stored_section(scored.run)
    assert re.findall(r"<figcaption>([^<]*)<", html) == [
        "attention, utterance 1, step 20",
        "attention, utterance 2, step 20",
    ]
    assert stored_section(find_runs([str(scored.run.path / "predictions" / "test.jsonl")])[0]) == ""
