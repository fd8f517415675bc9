"""TensorBoard: the event file of a run holds its numbers, texts, audio and pictures."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from ssl_asr.commands.train import train
from tests.training.test_wandb import PICTURES, PROMISED, TABLES
from tests.training.toy_runs import resolved, toy_overrides

# The step is that of the event, and W&B alone has a key for it.
NUMBERS = PROMISED - {"trainer/global_step"}


@pytest.fixture(scope="module")
def run(toy_checkpoints, toy_corpus, tmp_path_factory):
    """The folder of a run with a frozen encoder, and what its event file holds."""
    folder = tmp_path_factory.mktemp("board") / "run"
    overrides = toy_overrides(toy_checkpoints["wavlm_layer"], toy_corpus)
    overrides[overrides.index("logger=none")] = "logger=tensorboard"
    config = resolved(*overrides, "freeze=true", "logger.audio_samples=3", "verbose=false")
    train(replace(config, run_dir=str(folder)), folder)
    everything = {"scalars": 0, "tensors": 0, "images": 0, "audio": 0}
    return folder, EventAccumulator(str(folder / "tensorboard"), size_guidance=everything).Reload()


def _text(events, tag):
    """The last text under a name."""
    return make_ndarray(events.Tensors(f"{tag}/text_summary")[-1].tensor_proto).item().decode()


def test_every_promised_number_table_and_picture_is_there(run):
    _, events = run
    tags = events.Tags()
    assert set(tags["scalars"]) >= NUMBERS
    assert {f"{name}/text_summary" for name in (*TABLES, "val/wer_unit")} <= set(tags["tensors"])
    assert set(tags["images"]) == PICTURES
    assert all(image.width > 100 for name in PICTURES for image in events.Images(name))


def test_numbers_are_those_of_the_run(run):
    folder, events = run
    scores = json.loads((folder / "results.json").read_text())["test"]["scores"]["lower"]
    for name in ("wer", "cer", "wer_low", "wer_high"):
        assert events.Scalars(f"test/{name}")[-1].value == pytest.approx(scores[name])
    steps = [event.step for event in events.Scalars("val/wer")]
    assert steps == sorted(set(steps)), "one for each validation"
    assert len(steps) == 2
    assert f"| test | lower | {round(100 * scores['wer'], 2)} |" in _text(events, "results")
    assert _text(events, "val/wer_unit") == "words"


def test_tables_have_utterances_whose_audio_is_written_once(run):
    folder, events = run
    table = _text(events, "val/predictions").splitlines()
    assert table[0] == "| id | diff | errors | WER % |"
    names = [line.split(" | ")[0].removeprefix("| ") for line in table[2:]]
    assert len(names) == 3
    predictions = {json.loads(line)["id"]: json.loads(line) for line in open(folder / "predictions" / "dev.jsonl")}
    for name in names:
        [event] = events.Audio(f"val/predictions/{name}")
        samples, rate = soundfile.read(io.BytesIO(event.encoded_audio_string))
        whole, _ = soundfile.read(predictions[name]["audio_filepath"])
        assert rate == 16_000
        np.testing.assert_allclose(samples, whole[: len(samples)], atol=1e-3)
        assert len(samples) / rate == pytest.approx(predictions[name]["duration"], abs=0.01)
    assert "| id | diff | errors | WER % |" in _text(events, "test/worst")


def test_the_table_of_numbers_has_each_number_once_for_a_step(run):
    """Also those at the start and at the end of the run, which are rows of their own."""
    with open(run[0] / "metrics" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(row["step"].isdecimal() and row["epoch"].isdecimal() for row in rows)
    assert [int(row["step"]) for row in rows] == sorted(int(row["step"]) for row in rows)
    filled = [(name, row["step"]) for row in rows for name in row if row[name] and name not in ("step", "epoch")]
    assert len(filled) == len(set(filled))
