"""Texts that do not go with their audio, by the character error rate of a model."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from ssl_asr.commands.check import check
from ssl_asr.config.tools import CheckConfig
from ssl_asr.inference import model as inference_model
from ssl_asr.inference import text_check
from ssl_asr.inference.batches import Transcripts
from ssl_asr.metrics.report import Prediction

TEXTS = ["red apples fall", "some boats sail", "cold winds blow", "old clocks tick", "wet roads shine"]


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Five lines of one second, the texts of the first two swapped, and a model that makes one error in each line."""
    rng = np.random.default_rng(0)
    rows, written = [], [TEXTS[1], TEXTS[0], *TEXTS[2:]]
    for i, text in enumerate(written):
        soundfile.write(tmp_path / f"u{i}.wav", 0.1 * rng.standard_normal(16_000), 16_000)
        rows.append({"id": f"u{i}", "audio_filepath": f"u{i}.wav", "duration": 1.0, "text": text})
    rows.append({**rows[0], "id": "gone", "audio_filepath": "gone.wav", "text": "no file here"})
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(inference_model, "load_model", lambda *_: SimpleNamespace())
    monkeypatch.setattr(text_check, "model_limits", lambda *_, **__: None)

    def use(hypotheses):
        def transcribed(module, manifests, **_):
            rows = [
                Prediction(one.id, one.text, hypotheses[int(one.id[1:])], 0.0, 1.0, one.audio_filepath)
                for one in manifests["train"]
            ]
            return Transcripts({"train": rows}, {})

        monkeypatch.setattr(text_check, "transcribe_manifests", transcribed)
        config = CheckConfig(
            manifest={"train": str(tmp_path / "train.jsonl")},
            output_dir=str(tmp_path / "check"),
            model="toy",
            transcribe=True,
            verbose=False,
        )
        with pytest.raises(SystemExit):
            check(config, None)
        found = json.loads((tmp_path / "check" / "check.json").read_text())["findings"]
        return {one["id"]: one for one in found}

    return use


def test_swapped_texts_are_found_and_left_out(corpus, tmp_path):
    found = corpus([f"{text[:-1]}z" for text in TEXTS])
    assert {name: one["finding"] for name, one in found.items()} == {
        "gone": "missing_file",
        "u0": "text_mismatch",
        "u1": "text_mismatch",
    }
    assert found["u0"]["detail"].startswith("the transcript is 'red apples falz', and the text is 'some boats sail'")
    assert found["u0"]["where"].endswith("train.jsonl:1")
    kept = (tmp_path / "check" / "clean" / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in kept] == ["u2", "u3", "u4"]


def test_a_poor_model_finds_nothing_and_says_so(corpus, capsys):
    found = corpus(["zzz"] * 5)
    assert list(found) == ["gone"]
    assert (
        "warning: texts are not compared: the model's median character error rate is 100 %" in capsys.readouterr().err
    )
