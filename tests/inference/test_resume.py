"""An interrupted transcription resumes, and only with the same model and settings."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console

from ssl_asr.config.schemas import TranscribeConfig
from ssl_asr.data.identity import content_digest
from ssl_asr.data.manifest import read_manifest
from ssl_asr.errors import ConfigError
from ssl_asr.inference.long_form import NO_VAD, LongForm
from ssl_asr.inference.resume import ProgressFile, made_by, transcribe_manifest
from ssl_asr.inference.running import RunOptions
from ssl_asr.metrics.report import Prediction
from ssl_asr.training.module import TEXT_ONLY
from tests.training.toy_runs import build, toy_overrides

OPTIONS = {
    "run": RunOptions(max_batch_s=2.0, num_workers=0, accelerator="cpu"),
    "options": TEXT_ONLY,
    "console": None,
    "long_form": NO_VAD,
}


@pytest.fixture
def module(toy_checkpoints, toy_corpus, tmp_path):
    run = build(tmp_path / "run", *toy_overrides(toy_checkpoints["wav2vec2_group"], toy_corpus))
    return run.module.eval()


def test_finished_recordings_are_not_transcribed_again(module, toy_corpus, tmp_path, monkeypatch):
    manifest = read_manifest(toy_corpus["train"])
    whole = transcribe_manifest(module, manifest, progress=None, **OPTIONS)
    assert [row.id for row in whole.rows] == [utterance.id for utterance in manifest]
    path = tmp_path / "out.jsonl.progress.jsonl"
    plain, done = module.transcribe, []

    def fails_at_third(batch, out=None, options=TEXT_ONLY):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(batch.ids)
        return plain(batch, out, options)

    monkeypatch.setattr(module, "transcribe", fails_at_third)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        transcribe_manifest(module, manifest, progress=ProgressFile(path, {"model": "a"}), **OPTIONS)
    kept = [json.loads(line)["id"] for line in path.read_text().splitlines()[1:]]
    assert sorted(kept) == sorted(one for ids in done for one in ids)
    # As if the run was interrupted while it wrote a line.
    path.write_text(path.read_text() + '{"id": "tr')
    before = {one for ids in done for one in ids}
    done.clear()
    monkeypatch.setattr(
        module, "transcribe", lambda batch, *rest, **more: done.append(batch.ids) or plain(batch, *rest, **more)
    )
    progress = ProgressFile(path, {"model": "a"})
    console = Console(record=True, width=120, file=io.StringIO())
    again = transcribe_manifest(module, manifest, progress=progress, **(OPTIONS | {"console": console}))
    said = f"{len(kept)} of {len(manifest)} recordings were transcribed before the run was interrupted"
    assert said in console.export_text()
    durations = {utterance.id: utterance.duration for utterance in manifest}
    assert whole.audio_s == pytest.approx(sum(durations.values()))
    assert again.audio_s == pytest.approx(sum(durations[one] for one in durations if one not in before))
    assert again.rtfx == again.audio_s / again.busy_s
    assert not before & {one for ids in done for one in ids}
    assert [(row.id, row.hyp) for row in again.rows] == [(row.id, row.hyp) for row in whole.rows]
    progress.remove()
    assert not path.exists()
    deep = ProgressFile(tmp_path / "new" / "folder" / "p.jsonl", {"model": "a"})
    deep.begin()
    assert deep.path.is_file()


@pytest.mark.parametrize("stop", [3, 5, 6])
def test_findings_in_the_audio_survive_an_interruption(module, tmp_path, monkeypatch, capsys, stop):
    """In one pass and in windows, under the ids that the recordings have when the run ends."""
    tone = np.sin(np.arange(16000) * 0.1) * 0.5
    samples = {"half": tone, "silence": tone * 0, "long": np.tile(tone, 4), "quiet": np.zeros(48000), "good": tone}
    samples["last"] = tone[:9000]
    for name, own in samples.items():
        soundfile.write(tmp_path / f"{name}.wav", own, 16000, subtype="PCM_16")
    for name in ("half", "long"):
        path = tmp_path / f"{name}.wav"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    expected = [("half", "cut_off"), ("silence", "silent"), ("long", "cut_off"), ("quiet", "silent")]

    def manifest(prefix):
        path = tmp_path / f"{prefix}manifest.jsonl"
        lines = [
            {
                "id": f"{prefix}{name}",
                "audio_filepath": f"{name}.wav",
                "duration": soundfile.info(tmp_path / f"{name}.wav").duration,
                "text": "",
            }
            for name in samples
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return read_manifest(path)

    form = LongForm(chunk_s=1.2, stride_s=0.1, batch_s=60.0, vad=False)
    options = OPTIONS | {"long_form": form, "run": replace(OPTIONS["run"], on_bad_audio="skip")}
    whole = transcribe_manifest(module, manifest(""), progress=None, **options)
    assert [(one.id, one.finding) for one in whole.notices] == expected
    said = capsys.readouterr().err
    assert "warning: cut_off: half, long (2 recordings): the file ends before" in said
    path = tmp_path / "p.jsonl"
    real, count = ProgressFile.add, []

    def stops(progress, rows, notices):
        real(progress, rows, notices)
        count.extend(rows)
        if len(count) >= stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(ProgressFile, "add", stops)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        transcribe_manifest(module, manifest(""), progress=ProgressFile(path, {}), **options)
    assert "warning" not in capsys.readouterr().err
    monkeypatch.setattr(ProgressFile, "add", real)
    again = transcribe_manifest(module, manifest("new-"), progress=ProgressFile(path, {}), **options)
    assert [(one.id, one.finding) for one in again.notices] == [(f"new-{name}", what) for name, what in expected]
    said = capsys.readouterr().err
    assert said.count("warning: cut_off: ") == said.count("warning: silent: ") == 1
    assert all(f"new-{name}" in said for name, _ in expected)


def test_progress_is_found_by_the_recording_and_not_by_its_id(module, toy_corpus, tmp_path, monkeypatch):
    rows = [json.loads(line) for line in toy_corpus["dev"].read_text().splitlines()]
    folder = toy_corpus["dev"].parent
    own = [row | {"id": f"old{n}", "audio_filepath": str(folder / row["audio_filepath"])} for n, row in enumerate(rows)]
    shorter = own[0] | {"id": "old0", "duration": 0.3}
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    first.write_text("".join(json.dumps(row) + "\n" for row in own))
    # New ids, another order, a further row of the first file, and ids that other recordings had before.
    renamed = [row | {"id": f"old{n + 1}"} for n, row in enumerate(own)]
    second.write_text("".join(json.dumps(row) + "\n" for row in [shorter, *reversed(renamed)]))
    progress = ProgressFile(tmp_path / "p.jsonl", {})
    whole = transcribe_manifest(module, read_manifest(first), progress=progress, **OPTIONS)
    plain, done = module.transcribe, []
    monkeypatch.setattr(
        module, "transcribe", lambda batch, *rest, **more: done.append(batch.ids) or plain(batch, *rest, **more)
    )
    again = transcribe_manifest(
        module, read_manifest(second), progress=ProgressFile(tmp_path / "p.jsonl", {}), **OPTIONS
    )
    assert done == [["old0"]]
    assert [row.id for row in again.rows] == ["old0", *(row["id"] for row in reversed(renamed))]
    texts = {row.audio_filepath: row.hyp for row in whole.rows}
    assert all(row.hyp == texts[row.audio_filepath] for row in again.rows[1:])
    assert again.rows[0].duration == 0.3


def test_a_file_that_has_changed_is_transcribed_again(tmp_path):
    """Other audio of the same size at the same path, as a denoised copy."""
    paths = [tmp_path / name for name in ("a.wav", "b.wav")]
    for path in paths:
        path.write_bytes(bytes(1000))
    rows = [Prediction(path.stem, "", "one", -0.1, 4.0, str(path)) for path in paths]
    progress = ProgressFile(tmp_path / "p.jsonl", {})
    progress.begin()
    progress.add(rows, [])
    assert list(ProgressFile(tmp_path / "p.jsonl", {}).done.values()) == rows
    paths[0].write_bytes(bytes(999) + b"1")
    again = ProgressFile(tmp_path / "p.jsonl", {})
    assert list(again.done.values()) == rows[1:]
    again.begin()
    assert len((tmp_path / "p.jsonl").read_text().splitlines()) == 2
    paths[1].unlink()
    assert ProgressFile(tmp_path / "p.jsonl", {}).done == {}


def test_progress_file_of_another_model_is_refused(module, toy_corpus, tmp_path):
    path = tmp_path / "out.jsonl.progress.jsonl"
    progress = ProgressFile(path, {"model": "a"})
    transcribe_manifest(module, read_manifest(toy_corpus["dev"]), progress=progress, **OPTIONS)
    with pytest.raises(ConfigError, match="interrupted"):
        ProgressFile(path, {"model": "b"})
    path.write_bytes(bytes(range(256)))
    with pytest.raises(ConfigError, match="interrupted"):
        ProgressFile(path, {"model": "a"})


def test_weights_that_have_changed_are_another_model(module):
    config = TranscribeConfig(model="run", input=["a.wav"])
    before = made_by(config, module, TEXT_ONLY)
    assert made_by(config, module, TEXT_ONLY) == before
    with torch.no_grad():
        list(module.parameters())[-1].add_(1e-3)
    after = made_by(config, module, TEXT_ONLY)
    assert {key for key in before if before[key] != after[key]} == {"weights"}


@pytest.mark.parametrize("cut", [0, 1, 11, 40])
def test_progress_file_that_was_cut_in_its_first_line_has_nothing_done(tmp_path, cut):
    path = tmp_path / "p.jsonl"
    ProgressFile(path, {"model": "a"}).begin()
    path.write_bytes(path.read_bytes()[:cut])
    progress = ProgressFile(path, {"model": "a"})
    assert progress.done == {}
    progress.begin()
    assert len(path.read_text().splitlines()) == 1
    path.write_text('{"made_by": "0000')
    with pytest.raises(ConfigError, match="interrupted"):
        ProgressFile(path, {"model": "a"})


def test_progress_that_is_rewritten_or_cannot_be_written_is_kept(tmp_path, monkeypatch):
    path = tmp_path / "p.jsonl"
    progress = ProgressFile(path, {"model": "a"})
    progress.begin()
    row = Prediction("u1", "", "one", -0.1, 4.0, "/talks/a.wav")
    progress.add([row], [])
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ssl_asr.inference.resume.to_json", full)
    again = ProgressFile(path, {"model": "a"})
    for write in (again.begin, lambda: again.add([row], [])):
        with pytest.raises(ConfigError, match=r"p.jsonl: cannot be written: No space left.*same command continues"):
            write()
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["p.jsonl"]


def test_progress_bars_are_not_written_to_standard_output(module, toy_corpus, tmp_path, capfd):
    lines = [json.loads(line) for line in toy_corpus["dev"].read_text().splitlines()]
    longest = max(lines, key=lambda line: line["duration"])
    longest["id"] = "[/red] a name like markup"
    for line in lines:
        line["audio_filepath"] = str(toy_corpus["dev"].parent / line["audio_filepath"])
    path = tmp_path / "named.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    # The longest recording is transcribed by windows.
    parts = LongForm(chunk_s=longest["duration"] - 0.01, stride_s=0.1, batch_s=60.0, vad=False)
    shown = OPTIONS | {"console": Console(stderr=True, force_terminal=True), "long_form": parts}
    rows = transcribe_manifest(module, read_manifest(path), progress=None, **shown).rows
    assert len(rows) == len(lines)
    said = capfd.readouterr()
    assert said.out == ""
    assert "[/red] a name" in said.err
    assert "Transcribing" in said.err


def test_a_file_that_can_no_longer_be_opened_has_no_content(tmp_path, monkeypatch):
    (tmp_path / "a.wav").write_bytes(b"1")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert content_digest(tmp_path / "a.wav") is None
