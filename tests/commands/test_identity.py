"""Every recording that goes into a command comes out under its own name, or is named with a reason."""

import json
import os

import numpy as np
import pytest
import soundfile

from ssl_asr.commands.align import align
from ssl_asr.commands.evaluate import evaluate
from ssl_asr.commands.extract import extract
from ssl_asr.commands.transcribe import transcribe
from ssl_asr.config.schemas import AlignConfig, EvaluateConfig, ExtractConfig, TranscribeConfig
from ssl_asr.errors import ConfigError, ManifestError
from ssl_asr.inference import model as inference_model
from tests.training.toy_runs import build, toy_overrides

SHARED = {"model": "toy", "accelerator": "cpu", "verbose": False, "num_workers": 0}


@pytest.fixture(scope="module")
def module(toy_checkpoints, toy_corpus, tmp_path_factory):
    overrides = toy_overrides(toy_checkpoints["wav2vec2_group"], toy_corpus)
    return build(tmp_path_factory.mktemp("run"), *overrides).module.eval()


@pytest.fixture
def here(tmp_path, monkeypatch, module):
    """A working directory, with commands that use the toy model."""
    monkeypatch.setattr(inference_model, "load_model", lambda *_: module)
    monkeypatch.setattr(inference_model, "load_encoder", lambda *_: module.speech_encoder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def audio(path, seconds=0.5, channels=1, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(seed).uniform(-0.3, 0.3, (int(seconds * 16000), channels))
    soundfile.write(path, samples, 16000)


def manifest(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"duration": 0.5, "text": "a", **row}) + "\n" for row in rows))


def run(inputs, output=None, **more):
    parts = {"chunk_s": 2.0, "stride_s": 0.25, "vad": False}
    more = {"max_skip_fraction": 1.0, **more}
    transcribe(TranscribeConfig(input=inputs, output=output, **parts, **SHARED, **more), None)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def faults(here):
    """Inputs with 7 recordings that come out, and 11 that do not."""
    for n, name in enumerate(["a.wav", "b.wav", "sub/a.wav", "sub/long.wav", "sub/.hidden.wav"]):
        audio(here / "d" / name, 3.0 if "long" in name else 0.5, seed=n)
    (here / "d" / "empty.wav").touch()
    (here / "d" / "broken.wav").symlink_to("nowhere.wav")
    (here / "d" / "page.wav").write_text("<html>")
    (here / "d" / "notes.txt").write_text("notes")
    (here / "cut.wav").write_bytes((here / "d" / "a.wav").read_bytes()[:600])
    audio(here / "short.wav", 0.001)
    rows = [
        {"audio_filepath": "d/a.wav", "duration": 0.25},
        {"audio_filepath": "d/a.wav", "duration": 0.25, "offset": 0.25},
        {"audio_filepath": "d/a.wav", "duration": 0.25, "lang": "en"},
        {"audio_filepath": "d/a.wav", "duration": 0.25, "id": "again"},
        {"audio_filepath": "gone.wav"},
        {"audio_filepath": "gone.wav", "duration": 40.0},
        {"audio_filepath": "cut.wav"},
        {"audio_filepath": "d/b.wav", "duration": 9.0},
    ]
    manifest(here / "m.jsonl", *rows)
    return ["d", "./d/a.wav", "m.jsonl", "short.wav"]


def test_in_equals_out_and_skipped_under_faults(here, capsys):
    inputs = faults(here)
    run(inputs, "o.jsonl")
    rows, summary = lines(here / "o.jsonl"), json.loads((here / "o.jsonl.summary.json").read_text())
    assert (summary["in"], summary["out"], summary["skipped"]) == (18, len(rows), len(summary["skips"]))
    assert summary["in"] == summary["out"] + summary["skipped"]
    assert sum(summary["reasons"].values()) == summary["skipped"]
    assert len(rows) == 7
    assert summary["reasons"]["duplicate"] == 2
    assert summary["reasons"]["missing_file"] == 3
    said = capsys.readouterr().err
    for skip in summary["skips"]:
        assert f"skipped {skip['id']}: {skip['reason']}" in said
    assert "m.jsonl:5" in said
    assert "1 .txt" in said
    assert "recordings: 18 in, 7 out, 11 skipped" in said
    assert {path.name for path in here.iterdir() if "o.jsonl" in path.name} == {"o.jsonl", "o.jsonl.summary.json"}


def test_folder_of_several_formats_has_a_summary(here, module, monkeypatch):
    inputs, passes = faults(here), []
    plain = module.transcribe
    monkeypatch.setattr(
        module, "transcribe", lambda batch, *rest, **more: passes.append(len(batch)) or plain(batch, *rest, **more)
    )
    run(inputs, "out", format=["srt", "vtt", "json", "jsonl"])
    summary = json.loads((here / "out" / "summary.json").read_text())
    assert (summary["in"], summary["out"]) == (18, 7)
    assert sum(passes) == 6, "each short recording is transcribed once for all formats"
    names = ["a", "b", "long", "sub_a"]
    assert {path.stem for path in (here / "out").iterdir()} >= {"b", "long"}
    for suffix in (".srt", ".vtt", ".json"):
        stems = sorted(path.stem for path in (here / "out").glob(f"*{suffix}") if path.stem != "summary")
        assert len(stems) == len(names)
    assert not list(here.rglob("*.partial"))
    assert not list(here.rglob("*progress*"))


def test_recordings_of_two_manifests_with_one_id_both_come_out(here):
    for n, folder in enumerate(["m1", "m2"]):
        audio(here / folder / "wav" / "1.wav", 0.5 + n / 10, seed=n)
        manifest(here / folder / "test.jsonl", {"audio_filepath": "wav/1.wav", "duration": 0.5 + n / 10})
    run(["m1/test.jsonl", "m2/test.jsonl"], "o.jsonl")
    rows = lines(here / "o.jsonl")
    assert [(row["id"], row["audio_filepath"], row["duration"]) for row in rows] == [
        ("wav/1", "m1/wav/1.wav", 0.5),
        ("wav/1", "m2/wav/1.wav", 0.6),
    ]
    with pytest.raises(ConfigError, match=r"id 'wav/1' is used at m1/test.jsonl:1 and at m2/test.jsonl:1"):
        extract(ExtractConfig(input=["m1/test.jsonl", "m2/test.jsonl"], output_dir="states", **SHARED), None)


@pytest.mark.parametrize("output", [None, "o.txt", "o.jsonl", "o.srt"])
def test_rows_are_in_order_of_time_whatever_the_order_of_the_manifest(here, capsys, output):
    audio(here / "talk.wav", 3.0)
    offsets = [2.0, 0.0, 1.0]
    rows = [{"audio_filepath": "talk.wav", "offset": offset, "duration": 1.0, "id": f"u{offset}"} for offset in offsets]
    manifest(here / "talk.jsonl", *rows)
    run(["talk.jsonl"], "whole.jsonl")
    texts = [row["text"] for row in lines(here / "whole.jsonl")]
    assert [row["offset"] for row in lines(here / "whole.jsonl")] == [0.0, 1.0, 2.0]
    assert len(set(texts)) > 1
    capsys.readouterr()
    run(["talk.jsonl"], output)
    made = capsys.readouterr().out if output is None else (here / output).read_text()
    if output != "o.srt":
        places = [made.index(text) for text in dict.fromkeys(texts) if text]
        assert places == sorted(places)
    starts = [line[:12] for line in made.splitlines() if "-->" in line]
    assert starts == sorted(starts)


def test_inputs_are_never_replaced_and_the_model_is_not_loaded_before(here, monkeypatch):
    def fail(*_):
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(inference_model, "load_model", fail)
    audio(here / "d" / "a.wav")
    audio(here / "d" / "b.wav")
    manifest(here / "d" / "list.jsonl", {"audio_filepath": "a.wav"})
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    for inputs, output, more in (
        (["d"], "d/a.wav", {"format": "text"}),
        (["d"], "d/list.jsonl", {}),
        (["d/list.jsonl"], "d/list.jsonl", {}),
        (["d"], "one.srt", {}),
        (["d"], None, {"format": "vtt"}),
        (["d"], "d", {"format": "ctm"}),
        (["d"], "d/a.wav/x", {"format": "srt"}),
        (["d"], None, {"format": ["srt", "vtt"]}),
    ):
        with pytest.raises(ConfigError):
            run(inputs, output, **more)
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_nothing_out_is_an_error_with_a_summary(here, capsys, monkeypatch):
    (here / "a.wav").write_text("text")
    with pytest.raises(ConfigError, match="nothing could be transcribed"):
        run(["a.wav"], "o.jsonl")
    manifest(here / "m.jsonl", {"audio_filepath": "gone.wav"}, {"audio_filepath": "gone2.wav"})
    with pytest.raises(ConfigError, match="nothing could be transcribed"):
        run(["m.jsonl"], "o.jsonl")
    assert json.loads((here / "o.jsonl.summary.json").read_text())["reasons"] == {"missing_file": 2}
    assert not (here / "o.jsonl").exists()
    assert "skipped gone: missing_file" in capsys.readouterr().err


def test_too_many_bad_recordings_are_an_error_after_all_others_are_written(here):
    """8 of 18 cannot be used. A recording that is named twice, and a hidden file, are no faults."""
    inputs = faults(here)
    run(inputs, "allowed.jsonl", max_skip_fraction=0.45)
    what = r"input: 8 of 18 recordings could not be transcribed \(missing_file 3, duration_mismatch 2, .*\(now 0.44\)"
    with pytest.raises(ConfigError, match=what):
        run(inputs, "o.jsonl", max_skip_fraction=0.44)
    assert [row["text"] for row in lines(here / "o.jsonl")] == [row["text"] for row in lines(here / "allowed.jsonl")]
    assert json.loads((here / "o.jsonl.summary.json").read_text())["out"] == 7


def test_bad_short_recordings_do_not_stop_long_ones(here):
    audio(here / "long.wav", 3.0)
    manifest(here / "m.jsonl", {"audio_filepath": "gone.wav"})
    run(["m.jsonl", "long.wav"], "o.jsonl")
    assert [row["id"] for row in lines(here / "o.jsonl")] == ["long.wav"]


def test_align_counts_and_writes_each_recording(here, capsys):
    audio(here / "x" / "t.wav", 1.0)
    audio(here / "y" / "t.wav", 1.0, seed=1)
    rows = [{"audio_filepath": f"{name}/t.wav", "duration": 1.0} for name in ("x", "y", "gone")]
    manifest(
        here / "m.jsonl", *rows, {"audio_filepath": "x/t.wav", "id": "long", "text": "ab " * 9000, "duration": 1.0}
    )
    align(AlignConfig(manifest={"m": "m.jsonl"}, output="out", format=["srt", "json"], **SHARED), None)
    assert sorted(os.listdir(here / "out")) == ["x_t.json", "x_t.srt", "y_t.json", "y_t.srt"]
    said = capsys.readouterr().err
    assert "recordings: 4 in, 2 out, 2 skipped" in said
    assert "skipped long: no_room" in said
    with pytest.raises(ConfigError, match="is an input"):
        align(AlignConfig(manifest={"m": "m.jsonl"}, output="m.jsonl", **SHARED), None)


def test_extract_and_evaluate_count(here, capsys):
    audio(here / "a.wav")
    rows = [{"audio_filepath": "a.wav"}, {"audio_filepath": "gone.wav"}]
    manifest(here / "m.jsonl", *rows)
    (here / "page.wav").write_text("<html>")
    extract(ExtractConfig(input=["m.jsonl", "page.wav"], output_dir="states", **SHARED), None)
    assert "recordings: 3 in, 1 out, 2 skipped" in capsys.readouterr().out
    config = {"manifest": {"m": "m.jsonl"}, "output_dir": "scores", "max_skip_fraction": 0.5}
    evaluate(EvaluateConfig(**config, **SHARED), None)
    said = capsys.readouterr()
    assert "recordings: 2 in, 1 out, 1 skipped (missing_file 1)" in said.err
    assert said.out.startswith("m: WER ")
    run = json.loads((here / "scores" / "results.json").read_text())["run"]
    assert run["model"] == SHARED["model"]
    assert run["batches"]["m"]["batches"] == 1
    # Results of another manifest do not stay beside those that replace them.
    (here / "scores" / "predictions" / "other.jsonl").write_text("")
    [error] = EvaluateConfig(**config, **SHARED).conflicts()
    assert str(error) == (
        "output_dir: scores already holds the results of an evaluation. "
        "Write overwrite=true to replace it, or give another name."
    )
    assert not list(EvaluateConfig(**config, **SHARED, overwrite=True).conflicts())
    evaluate(EvaluateConfig(**config, **SHARED, overwrite=True), None)
    assert os.listdir(here / "scores" / "predictions") == ["m.jsonl"]
    assert [row["id"] for row in lines(here / "scores" / "skipped.jsonl")] == ["gone"]


def test_evaluate_gives_no_score_for_a_part_of_a_manifest(here, capsys):
    """Headers are right, and every other file of ``bad`` is cut. ``good`` is scored, and what was decoded is kept."""
    for i in range(8):
        audio(here / f"{i}.flac", seed=i)
        (here / f"cut{i}.flac").write_bytes(
            (here / f"{i}.flac").read_bytes()[: (here / f"{i}.flac").stat().st_size // 2]
        )
    manifest(here / "good.jsonl", *({"audio_filepath": f"{i}.flac"} for i in range(4)))
    manifest(here / "bad.jsonl", *({"audio_filepath": f"{'cut' * (i % 2)}{i}.flac"} for i in range(4, 8)))
    shared = {**SHARED, "manifest": {"good": "good.jsonl", "bad": "bad.jsonl"}, "output_dir": "scores"}
    what = r"bad\.jsonl: 2 of 4 utterances dropped \(decode_error 2\): cut\d: .*raise max_skip_fraction \(now 0.05\)"
    with pytest.raises(ManifestError, match=what):
        evaluate(EvaluateConfig(**shared), None)
    assert list(json.loads((here / "scores" / "results.json").read_text())) == ["run", "good"]
    skipped = lines(here / "scores" / "skipped.jsonl")
    assert sorted((row["split"], row["id"], row["reason"]) for row in skipped) == [
        ("bad", "cut5", "decode_error"),
        ("bad", "cut7", "decode_error"),
    ]
    assert sorted(row["id"] for row in lines(here / "scores" / "predictions" / "bad.jsonl")) == ["4", "6"]
    evaluate(EvaluateConfig(**shared, max_skip_fraction=0.5), None)
    assert list(json.loads((here / "scores" / "results.json").read_text())) == ["run", "good", "bad"]
    manifest(here / "all.jsonl", *({"audio_filepath": f"cut{i}.flac"} for i in range(4)))
    with pytest.raises(ConfigError, match="nothing could be transcribed"):
        evaluate(EvaluateConfig(**{**shared, "manifest": {"all": "all.jsonl"}}), None)
    assert "skipped cut0: decode_error" in capsys.readouterr().err
