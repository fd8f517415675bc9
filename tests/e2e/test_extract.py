"""``extract``: states equal those of transformers, extraction resumes, and ``train`` reads the states."""

import json

import pytest
import torch
import transformers

from ssl_asr.data.audio import read_waveform
from ssl_asr.data.manifest import read_manifest
from ssl_asr.data.state_store import StateStore
from tests.training.toy_runs import build, toy_overrides


def test_states_of_every_layer_equal_transformers(run_command, toy_checkpoints, toy_corpus, tmp_path):
    checkpoint, out = toy_checkpoints["hubert_group"], tmp_path / "states"
    arguments = [f"model={checkpoint}", f"input=[{toy_corpus['dev']}]", f"output_dir={out}", "layers=all"]
    done = run_command("extract", *arguments, "num_workers=0")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "States of layers 0, 1, 2" in done.stdout
    store = StateStore(out)
    reference = transformers.HubertModel.from_pretrained(checkpoint).eval()
    for utterance in read_manifest(toy_corpus["dev"]):
        states_LFD, frames = store[utterance.id]
        with torch.inference_mode():
            expected = reference(read_waveform(utterance)[None], output_hidden_states=True).hidden_states
        torch.testing.assert_close(states_LFD, torch.cat(expected), atol=1e-5, rtol=1e-4)
        assert frames == states_LFD.shape[1]
    written = {path: path.stat().st_mtime_ns for path in out.glob("states-*")}
    again = run_command("extract", *arguments, "num_workers=0")
    assert again.returncode == 0
    assert "4 utterances have states already" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in out.glob("states-*")} == written
    other = run_command("extract", *[a.replace("all", "last") for a in arguments])
    assert other.returncode == 2
    assert "has states with another origin (layers is [0, 1, 2], expected [2])" in other.stderr
    assert "Traceback" not in other.stderr


def test_head_trains_on_extracted_states_without_the_encoder(run_command, toy_checkpoints, toy_corpus, tmp_path):
    out = tmp_path / "states"
    inputs = f"input=[{toy_corpus['train']},{toy_corpus['dev']}]"
    done = run_command("extract", f"model={toy_checkpoints['wav2vec2_layer']}", inputs, f"output_dir={out}")
    assert done.returncode == 0, done.stderr[-2000:]
    overrides = [*toy_overrides(toy_checkpoints["wav2vec2_layer"], toy_corpus), "freeze=true", "state_cache=disk"]
    run = build(tmp_path / "run", *overrides, f"state_cache.folder={out}")

    def fail(*_):
        raise AssertionError("the encoder runs although all states are stored")

    run.module.encoder.register_forward_hook(fail)
    run.trainer.fit(run.module, datamodule=run.data)
    assert run.trainer.global_step > 0


def test_extract_takes_files_and_a_finished_run_and_names_bad_audio(run_command, toy_checkpoints, toy_corpus, tmp_path):
    run = build(tmp_path / "run", *toy_overrides(toy_checkpoints["wav2vec2_layer"], toy_corpus))
    run.trainer.fit(run.module, datamodule=run.data)
    folder = tmp_path / "audio"
    folder.mkdir()
    (folder / "bad.wav").write_bytes(b"nothing")
    (folder / "good.wav").write_bytes((toy_corpus["dev"].parent / "dev0.wav").read_bytes())
    out = tmp_path / "states"
    done = run_command(
        "extract", f"model={tmp_path / 'run'}", f"input=[{folder}]", f"output_dir={out}", "dtype=float16"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "bad.wav" in done.stdout
    [key] = StateStore(out)
    states_LFD, _ = StateStore(out)[key]
    assert states_LFD.dtype == torch.float16
    row = json.loads(toy_corpus["dev"].read_text().splitlines()[0])
    assert row["id"] == "dev0"
    waveform = read_waveform(read_manifest(toy_corpus["dev"])[0])
    with torch.inference_mode():
        expected = run.module.eval().encoder(waveform[None], torch.tensor([len(waveform)])).h_BFD
    torch.testing.assert_close(states_LFD.float(), expected, atol=5e-3, rtol=5e-3)


def test_enhanced_copy_of_equal_name_and_size_does_not_get_the_states_of_the_noisy_one(
    run_command, toy_checkpoints, toy_corpus, tmp_path
):
    noisy = (toy_corpus["dev"].parent / "dev0.wav").read_bytes()
    for name, content in (("noisy", noisy), ("enhanced", noisy[:-2] + b"\x07\x07"), ("copy", noisy)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.wav").write_bytes(content)
        (tmp_path / name / "m.jsonl").write_text('{"id": "a", "audio_filepath": "a.wav", "text": ""}\n')
    base = [f"model={toy_checkpoints['wav2vec2_layer']}", f"output_dir={tmp_path}/states"]
    assert run_command("extract", *base, f"input=[{tmp_path}/noisy/m.jsonl]").returncode == 0
    enhanced = run_command("extract", *base, f"input=[{tmp_path}/enhanced/m.jsonl]")
    assert enhanced.returncode == 2
    assert "has states of" in enhanced.stderr
    assert "from other audio of that id. Use another folder" in enhanced.stderr
    copy = run_command("extract", *base, f"input=[{tmp_path}/copy/m.jsonl]")
    assert copy.returncode == 0, copy.stderr
    assert "1 utterances have states already" in copy.stdout


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["layers=[0,9]"], "layers: is [0, 9], expected last, all, or a rising list of numbers from 0"),
        (["layers=[1,0]"], "layers: is [1, 0]"),
        (["layers=top"], "layers: is 'top'"),
        (["dtype=int8"], "dtype: is 'int8', expected 'float32' or 'float16'"),
        (["window=real"], "window: got real, and only Whisper encoders have a window"),
        (["input=[nowhere.wav]"], "nowhere.wav: no such file or folder"),
    ],
)
def test_wrong_options_exit_with_code_2(run_command, toy_checkpoints, toy_corpus, tmp_path, wrong, message):
    out = tmp_path / "states"
    base = [f"model={toy_checkpoints['wav2vec2_layer']}", f"input=[{toy_corpus['dev']}]", f"output_dir={out}"]
    done = run_command("extract", *base, *wrong)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()
