"""The numbers that commands print at their end, each against a value worked out by hand."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from ssl_asr.build import summary
from ssl_asr.commands import align as align_command
from ssl_asr.commands import demo as demo_command
from ssl_asr.commands import transcribe as transcribe_command
from ssl_asr.commands.compare import compare
from ssl_asr.commands.train import _print_overview
from ssl_asr.config.schemas import AlignConfig, TranscribeConfig
from ssl_asr.config.tools import CompareConfig, DemoConfig
from ssl_asr.data.batching import Batching
from ssl_asr.inference.batches import Transcripts
from ssl_asr.inference.extraction import _print_totals
from ssl_asr.inference.resume import Transcribed
from ssl_asr.metrics.report import Prediction, write_predictions
from ssl_asr.training.sides import GroupRow
from ssl_asr.types import Notice, Skip, Token, Word
from tests.tables import cells, heads, wide_console

SHARED = {"model": "toy", "accelerator": "cpu", "num_workers": 0}


def _audio(path, seconds=0.5):
    soundfile.write(path, np.zeros(int(seconds * 16000)), 16000)


def test_transcribe_prints_how_much_faster_than_the_speech_it_was(tmp_path, monkeypatch, capsys):
    for name in ("a.wav", "b.wav"):
        _audio(tmp_path / name)
    row = Prediction("a", "", "hello", 0.0, 0.5, str(tmp_path / "a.wav"))
    skips, notices = [Skip("b", "", "too_short", "0.01 s")], [Notice("a", "cut_off")]
    done = Transcribed([row], skips, audio_s=90.04, busy_s=1.6, notices=notices)
    monkeypatch.setattr(transcribe_command, "_transcribe", lambda *_: done)
    parts = {"chunk_s": 2.0, "stride_s": 0.25, "vad": False, "verbose": True}
    parts["max_skip_fraction"] = 0.5
    config = TranscribeConfig(input=[str(tmp_path)], output=str(tmp_path / "o.jsonl"), **parts, **SHARED)
    transcribe_command.transcribe(config, None)
    said = capsys.readouterr().err
    assert "90.0 s of audio in 1.6 s: RTFx 56.3" in said
    assert "recordings: 2 in, 1 out, 1 skipped (too_short 1)" in said
    written = json.loads((tmp_path / "o.jsonl.summary.json").read_text())
    assert (written["in"], written["out"], written["skipped"]) == (2, 1, 1)
    message = "the file ends before its header says, and the rest is missing."
    assert written["warnings"] == [{"id": "a", "code": "cut_off", "message": message}]


def test_align_prints_the_number_of_words_and_of_words_without_a_label(tmp_path, monkeypatch, capsys):
    _audio(tmp_path / "a.wav")
    texts = {"u0": "a b", "u1": "a", "u2": "a b c", "u3": ""}
    rows = [{"id": name, "audio_filepath": "a.wav", "duration": 0.5, "text": text} for name, text in texts.items()]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def aligned(name, *words):
        return Prediction(name, texts[name], texts[name], 0.0, 0.5, str(tmp_path / "a.wav"), words=list(words))

    known = Word("a", 0.0, 0.1, 1.0, tokens=(Token("a", 0.0, 0.1, 1.0),))
    wild = Word("b", 0.1, 0.2, 1.0)
    found = [aligned("u0", known, wild), aligned("u1", known), aligned("u2"), aligned("u3")]
    monkeypatch.setattr(align_command, "_align", lambda *_: (Transcripts({"test": found}, {"test": []}), []))
    out = str(tmp_path / "o.jsonl")
    align_command.align(AlignConfig(manifest={"test": str(tmp_path / "m.jsonl")}, output=out, **SHARED), None)
    said = capsys.readouterr()
    assert "3 words of 3 utterances are in" in said.out.replace("\n", " ")
    assert "recordings: 4 in, 3 out, 1 skipped (no_room 1)" in said.err
    assert "timed by the speech between their neighbors: 1" in said.err


def test_train_prints_how_full_its_batches_are(monkeypatch):
    rows = [GroupRow("encoder", "layers.0", 0, 3000, None), GroupRow("rest", "head", 1000, 1000, 1e-3)]
    run = SimpleNamespace(
        module=SimpleNamespace(group_table=lambda: rows),
        config=SimpleNamespace(freeze_policy=SimpleNamespace()),
        data=SimpleNamespace(batching=lambda world_size: {"train": Batching.of([9.0, 8.0], [12.0, 8.0], 16.0, 2)}),
        trainer=SimpleNamespace(world_size=2),
    )
    console = wide_console()
    monkeypatch.setattr(summary, "print_start", lambda *_: None)
    _print_overview(run, Path("run"), None, console)
    text = " ".join(console.export_text(clear=False).split())
    assert "1,000 of 4,000 parameters train (25.0 %)" in text
    # 20 s of 32 s are computed. 3 s of them are padding. One rank waits while the other one computes 4 s.
    assert cells(console)[-1] == ["train", "2", "0.01", "62.5", "15.0", "83.3"]


def test_extract_prints_the_size_of_the_store():
    store = SimpleNamespace(totals=lambda: (1234, 567_890), gigabytes=lambda: 1.23456, folder="states")
    console = wide_console()
    _print_totals(SimpleNamespace(layers=[2, 5], store=store), console)
    assert "States of layers 2, 5" in console.export_text(clear=False)
    assert heads(console) == [["utterances", "frames of speech", "GB on disk"]]
    assert cells(console) == [["1,234", "567,890", "1.235"]]


def test_demo_prints_the_wer_before_and_after(tmp_path, monkeypatch, capsys):
    def step(title, command, *arguments):
        folder = tmp_path / {"evaluate": "zero_shot", "train": "run", "corpus": "corpus"}.get(command, command)
        folder.mkdir(exist_ok=True)
        wer = {"evaluate": 0.4567, "train": 0.0249}.get(command, 0.0)
        (folder / "results.json").write_text(json.dumps({"test": {"scores": {"lower": {"wer": wer}}}}))
        (folder / "test.jsonl").write_text('{"audio_filepath": "a.wav"}\n')

    monkeypatch.setattr(demo_command, "step", step)
    assert demo_command.demo(DemoConfig(output_dir=str(tmp_path)), None) == 0.0249
    [row] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["lower", "45.7", "2.5"]


def test_compare_returns_and_writes_the_difference(tmp_path, capsys):
    first = [Prediction("u0", "a b c d", "a b x y", 0.0, 1.0, ""), Prediction("u1", "a", "a", 0.0, 1.0, "")]
    second = [Prediction("u0", "a b c d", "a b c y", 0.0, 1.0, ""), first[1]]
    for name, rows in (("1.jsonl", first), ("2.jsonl", second)):
        write_predictions(tmp_path / name, rows)
    config = CompareConfig(
        first=str(tmp_path / "1.jsonl"),
        second=str(tmp_path / "2.jsonl"),
        output=str(tmp_path / "o.json"),
        normalizers=["lower"],
    )
    assert compare(config, None) == pytest.approx(1 / 5 - 2 / 5)
    written = json.loads((tmp_path / "o.json").read_text())["predictions"]["lower"]
    assert (written["first"]["sub"], written["second"]["sub"], written["utterances"]) == (2, 1, 2)
    assert "2 → 1" in capsys.readouterr().out
