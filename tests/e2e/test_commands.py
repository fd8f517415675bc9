"""Every command on tiny models, run as from a shell."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from ssl_asr.decoding.neural_lm import NeuralLM
from tests.command_runner import REPO
from tests.toys import save_language_model
from tests.training.toy_runs import toy_overrides


@pytest.fixture(scope="module")
def runs(run_command, toy_checkpoints, toy_corpus, tmp_path_factory):
    """A finished CTC run and a finished Whisper run."""
    made = {}
    for task, name in (("ctc", "wav2vec2_group"), ("seq2seq", "whisper")):
        folder = tmp_path_factory.mktemp(task)
        overrides = [o for o in toy_overrides(toy_checkpoints[name], toy_corpus, task) if o != "logger=none"]
        done = run_command("train", *overrides, f"run_dir={folder}")
        assert done.returncode == 0, done.stderr[-3000:]
        made[task] = (folder, done)
    return made


@pytest.mark.parametrize("task", ["ctc", "seq2seq"])
def test_run_folder_has_configs_checkpoints_metrics_and_results(runs, task):
    folder, done = runs[task]
    for name in (
        ".hydra/overrides.yaml",
        "train.log",
        "config.yaml",
        "results.json",
        "skipped.jsonl",
        "metrics/metrics.csv",
        "metrics/hparams.yaml",
    ):
        assert (folder / name).is_file(), name
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    header = (folder / "metrics" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"val/wer", "val/cer", "val/loss", "train/loss", "train/grad_norm", "lr/rest"} <= set(header)
    for part in ("kept of 10", "parameters train", "budget filled %", "Samples", "WER %"):
        assert part in done.stdout, done.stdout
    assert "Traceback" not in done.stderr
    saved = (folder / "train.log").read_text()
    for part in ("kept of 10", "parameters train", "batches of up to 3 s", "Samples", "WER %", "ssl-asr export"):
        assert part in saved
    assert "\x1b" not in saved
    assert "left" not in saved, "a progress bar"


def test_forked_command_equals_command_of_a_shell(run_command, tmp_path):
    """The other tests fork commands from a process that has imported the libraries. This test starts a new one."""
    words = ["evaluate", f"predictions={tmp_path}/nowhere.jsonl", f"output_dir={tmp_path}/out"]
    forked = run_command(*words)
    command = [sys.executable, "-m", "ssl_asr", *words]
    started = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert (forked.returncode, forked.stdout, forked.stderr) == (started.returncode, started.stdout, started.stderr)
    assert forked.returncode == 2
    assert "nowhere.jsonl" in forked.stderr


@pytest.mark.parametrize("task", ["ctc", "seq2seq"])
def test_evaluate_reproduces_the_scores_of_training_exactly(runs, run_command, toy_corpus, tmp_path, task):
    folder, _ = runs[task]
    expected = json.loads((folder / "results.json").read_text())["test"]["scores"]
    for source in (
        [f"model={folder}", f"manifest={toy_corpus['test']}", "max_batch_s=2.0"],
        [f"predictions={folder}/predictions/test.jsonl"],
    ):
        more = ["max_tokens_per_s=4"] if task == "seq2seq" and source[0].startswith("model") else []
        again = ["overwrite=true"] if source[0].startswith("predictions") else []
        done = run_command("evaluate", *source, *more, *again, f"output_dir={tmp_path / 'out'}", "num_workers=0")
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads((tmp_path / "out" / "results.json").read_text())["test"]["scores"] == expected


@pytest.mark.parametrize("task", ["ctc", "seq2seq"])
def test_checkpoint_alone_transcribes(runs, run_command, toy_corpus, tmp_path, task):
    """A checkpoint in another folder, without the config and the pretrained model, transcribes."""
    moved = tmp_path / "moved"
    (moved / "checkpoints").mkdir(parents=True)
    shutil.copy(runs[task][0] / "checkpoints" / "best.ckpt", moved / "checkpoints")
    soundfile.write(tmp_path / "stereo.flac", np.random.default_rng(0).uniform(-0.1, 0.1, (44100, 2)), 44100)
    (tmp_path / "bad.wav").write_text("<html>")
    arguments = [
        "transcribe",
        f"model={moved}",
        f"input=[{tmp_path},{toy_corpus['dev']}]",
        f"output={tmp_path}/o.jsonl",
        "vad=false",
        "max_skip_fraction=0.2",
    ]
    done = run_command(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in open(tmp_path / "o.jsonl")]
    assert len(rows) == 5
    assert {"id", "audio_filepath", "offset", "duration", "text", "score"} == set(rows[0])
    assert f"skipped {tmp_path / 'bad.wav'}: not_audio" in done.stderr
    files = ["bad.wav", "moved", "o.jsonl", "o.jsonl.summary.json", "stereo.flac"]
    assert sorted(p.name for p in tmp_path.iterdir()) == files, "no other files"


def test_transcribe_writes_subtitles_and_word_times(runs, run_command, toy_corpus, tmp_path):
    audio = toy_corpus["dev"].parent
    model = f"model={runs['ctc'][0]}"
    done = run_command("transcribe", model, f"input=['{audio}/*.wav']", f"output={tmp_path}/subs", "format=srt")
    assert done.stderr.count("no speech was found") == len(list(audio.glob("*.wav")))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "RTFx" in done.stderr
    assert len(list((tmp_path / "subs").glob("*.srt"))) == len(list(audio.glob("*.wav")))
    one = next(iter(sorted(audio.glob("*.wav"))))
    done = run_command(
        "transcribe", model, "input=[-]", f"output={tmp_path}/all.jsonl", "times=entropy", "vad=false", stdin=f"{one}\n"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = [json.loads(line) for line in open(tmp_path / "all.jsonl")]
    assert row["text"].split() == [word["text"] for word in row.get("words", [])]
    refused = run_command("transcribe", f"model={runs['seq2seq'][0]}", f"input=[{one}]", f"output={tmp_path}/x.ctm")
    assert refused.returncode == 2
    assert "alignment_heads" in refused.stderr
    assert not list(tmp_path.rglob("*progress*")), "progress files are removed at the end"


def test_align_writes_times_of_known_texts(runs, run_command, toy_corpus, tmp_path):
    rows = [json.loads(line) for line in open(toy_corpus["dev"])]
    for row in rows:
        row["audio_filepath"] = str(toy_corpus["dev"].parent / row["audio_filepath"])
    rows[0]["text"] = "ab " * 9000
    rows[1]["text"] = "Ab, cab 123 back!"
    rows[2]["text"] = "78 9"
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = [f"model={runs['ctc'][0]}", f"manifest={tmp_path}/some.jsonl"]
    done = run_command("align", *shared, f"output={tmp_path}/some.ctm")
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"skipped {rows[0]['id']}" in done.stderr
    assert f"skipped {rows[2]['id']}: no_labels: the model has no label for any of its characters: 789" in done.stderr
    assert "timed by the speech between their neighbors: 1" in done.stderr
    lines = [line.split() for line in open(tmp_path / "some.ctm")]
    by_file = {}
    for name, _, start, duration, word, confidence in lines:
        assert 0 <= float(confidence) <= 1
        by_file.setdefault(name, []).append((float(start), float(start) + float(duration), word))
    assert set(by_file) == {rows[1]["id"], rows[3]["id"]}
    for row in (rows[1], rows[3]):
        found = by_file[row["id"]]
        assert [word for _, _, word in found] == row["text"].split()
        assert all(start <= end <= row["duration"] + 0.05 for start, end, _ in found)
    refused = run_command("align", f"model={runs['seq2seq'][0]}", shared[1], f"output={tmp_path}/x.ctm")
    assert refused.returncode == 2
    assert "no CTC layer" in refused.stderr


def test_tuned_decoder_reproduces_its_wer_and_wrong_decoders_are_refused(runs, run_command, toy_corpus, tmp_path):
    lm = tmp_path / "lm.arpa"
    made = run_command(
        "lm", f"input=[{toy_corpus['train']}]", f"output={lm}", "order=2", f"check=[{toy_corpus['dev']}]"
    )
    assert made.returncode == 0, made.stderr[-2000:]
    assert "Perplexity" in made.stdout
    tuned = run_command(
        "tune_decoding",
        f"model={runs['ctc'][0]}",
        f"manifest={toy_corpus['dev']}",
        f"decoder.lm={lm}",
        f"decoder.rescore_lm={lm}",
        "decoder.n_best=2",
        f"output={tmp_path}/decoder.yaml",
        "lm_weights=[0,1]",
        "word_scores=[0]",
        "unknown_scores=[-3,-10]",
        "beam_sizes=[2]",
        "rescore_weights=[0,1]",
        "rescore_word_scores=[0,2]",
        "num_workers=0",
    )
    assert tuned.returncode == 0, tuned.stderr[-2000:]
    shared = [
        f"model={runs['ctc'][0]}",
        f"manifest={toy_corpus['dev']}",
        f"output_dir={tmp_path / 'out'}",
        "num_workers=0",
    ]
    done = run_command("evaluate", *shared, f"decoder_file={tmp_path}/decoder.yaml")
    assert done.returncode == 0, done.stderr[-2000:]
    wer = json.loads((tmp_path / "out" / "results.json").read_text())["test"]["scores"]["lower"]["wer"]
    assert f"WER {100 * wer:.2f} on dev" in tuned.stdout, "evaluate measures the WER that tune_decoding printed"
    for wrong, message in (
        ("decoder=whisper_beam", "WhisperBeam does not decode models of task ctc"),
        ("decoder=ctc_beam decoder.lm=nowhere.arpa", "decoder.lm: is 'nowhere.arpa'"),
        ("decoder=ctc_beam decoder.rescore_lm=nowhere/at/all", "decoder.rescore_lm: is 'nowhere/at/all'"),
        ("decoder=ctc_beam decoder.beam_size=0", "decoder.beam_size: is 0"),
    ):
        done = run_command("evaluate", *shared, *wrong.split(), "overwrite=true")
        assert done.returncode == 2
        assert message in done.stderr


@pytest.mark.parametrize(
    ("task", "decoder", "unit"),
    [("ctc", "ctc_beam", "word"), pytest.param("seq2seq", "whisper_beam", "label", marks=pytest.mark.slow)],
)
def test_neural_language_model_is_fused_and_rescores_the_n_best_list(
    runs, run_command, toy_corpus, tmp_path, task, decoder, unit
):
    lm = save_language_model(tmp_path / "lm")
    # The toy CTC model computes 800 frames per second, so 0.25 s of each utterance is enough.
    rows = [{**json.loads(line), "duration": 0.25} for line in open(toy_corpus["test"])]
    for row in rows:
        row["audio_filepath"] = str(toy_corpus["test"].parent / row["audio_filepath"])
    short = tmp_path / "short.jsonl"
    short.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = [f"model={runs[task][0]}", f"manifest={short}", "num_workers=0", f"decoder={decoder}"]
    shared += ["decoder.beam_size=3", "decoder.n_best=3", f"decoder.rescore_lm={lm}"]
    shared += ["max_tokens_per_s=4"] if task == "seq2seq" else []
    found = {}
    for weight in (0.0, 50.0):
        weights = [f"decoder.lm={lm}", f"decoder.lm_unit={unit}", f"decoder.rescore_weight={weight}"]
        done = run_command("evaluate", *shared, *weights, f"output_dir={tmp_path}/{weight:g}")
        assert done.returncode == 0, done.stderr[-2000:]
        found[weight] = [json.loads(line) for line in open(tmp_path / f"{weight:g}" / "predictions" / "test.jsonl")]
    model = NeuralLM.load(str(lm))
    for before, after in zip(found[0.0], found[50.0], strict=True):
        texts = [before["hyp"], *(other["text"] for other in before.get("alternatives", []))]
        others = [other["text"] for other in after.get("alternatives", [])]
        assert {after["hyp"], *others} == set(texts), "both weights rescore the same n-best list"
        assert (
            after["hyp"] == texts[max(range(len(texts)), key=model.text_log_probs(texts).__getitem__)]
            or task == "seq2seq"
        )


def test_evaluate_takes_a_pretrained_whisper(run_command, toy_checkpoints, toy_corpus, tmp_path):
    arguments = [f"model={toy_checkpoints['whisper']}", f"manifest={toy_corpus['test']}", "max_tokens_per_s=2"]
    done = run_command("evaluate", *arguments, f"output_dir={tmp_path}", "num_workers=0")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "kept of 5" in done.stdout


def test_sweep_runs_every_job_and_fails_if_a_job_fails(run_command, toy_checkpoints, toy_corpus, tmp_path):
    overrides = toy_overrides(toy_checkpoints["hubert_group"], toy_corpus)
    overrides = [o for o in overrides if not o.startswith(("trainer.max_epochs", "data.max_skip"))]
    done = run_command(
        "train",
        "-m",
        *overrides,
        "trainer.max_epochs=1",
        "data.max_s=0.01,10",
        "freeze=true",
        f"hydra.sweep.dir={tmp_path}",
        "verbose=false",
    )
    assert done.returncode == 2
    assert "0 of 10 utterances are usable: too_long 10" in done.stderr
    assert "1 of the jobs failed" in done.stderr
    assert not (tmp_path / "0" / "results.json").exists()
    assert (tmp_path / "1" / "results.json").exists()


BAD = {
    "manifest": (["data.train={broken}"], "broken.jsonl:1: is not valid JSON"),
    "missing manifest": (["data.train=nowhere.jsonl"], "nowhere.jsonl: no such manifest"),
    "checkpoint": (["backbone.source=nobody/nothing"], "nobody/nothing: not found"),
    "folder": (["backbone.source={empty}"], "has no config.json"),
    "family": (["backbone=whisper_tiny_en", "backbone.source={ssl}"], "runs whisper"),
    "resume": (["resume={broken}"], "cannot be read"),
    "duplicate ids": (["data.dev={train}", "data.allow_duplicate_ids=false"], "utterance ids occur in two manifests"),
    "unseen characters": (["tokenizer.characters=xyz"], "characters are not in the vocabulary"),
    "several": (["seeed=1", "head=bogus"], "Did you mean 'seed'?"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_exits_with_code_2_and_leaves_no_partial_results(
    run_command, toy_checkpoints, toy_corpus, tmp_path, case
):
    broken, empty, out = tmp_path / "broken.jsonl", tmp_path / "empty", tmp_path / "out"
    broken.write_text("{nope\n")
    empty.mkdir()
    names = {"broken": broken, "empty": empty, "ssl": toy_checkpoints["wav2vec2_group"]}
    if case == "duplicate ids":
        copy = tmp_path / "train.jsonl"
        text = (
            toy_corpus["train"]
            .read_text()
            .replace('"audio_filepath": "', f'"audio_filepath": "{toy_corpus["train"].parent}/')
        )
        copy.write_text(text)
        names["train"] = copy
    overrides, message = BAD[case]
    overrides = [override.format(**names) for override in overrides]
    done = run_command(
        "train", *toy_overrides(toy_checkpoints["wav2vec2_group"], toy_corpus), *overrides, f"run_dir={out}"
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert message in done.stderr
    assert not out.exists(), "a run that is refused leaves nothing"


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("evaluate", ["model=nowhere", "manifest=x.jsonl"], "x.jsonl: no such manifest"),
        ("evaluate", ["manifest=x.jsonl"], "Give model=… and manifest=…, or predictions=…"),
        ("transcribe", ["model=x", "input=[nowhere.wav]"], "nowhere.wav: no such file or folder"),
        ("transcribe", ["model={empty}", "input=[{audio}]"], "has neither checkpoints/best.ckpt nor config.json"),
        ("transcribe", ["model={audio}", "input=[{audio}]"], "cannot be read"),
    ],
)
def test_other_commands_exit_with_code_2_and_a_message(run_command, tmp_path, command, arguments, message):
    (tmp_path / "empty").mkdir()
    audio = tmp_path / "a.wav"
    soundfile.write(audio, np.zeros(1600), 16000)
    filled = [argument.format(empty=tmp_path / "empty", audio=audio) for argument in arguments]
    done = run_command(command, *filled, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_usage_lists_the_commands(run_command):
    done = run_command("--help")
    assert done.returncode == 0
    for name in ("train", "evaluate", "transcribe", "extract", "corpus", "demo"):
        assert name in done.stdout


def test_splits_of_a_synthesized_corpus_share_no_voice_and_no_sentence(run_command, tmp_path):
    from ssl_asr.data.manifest import read_manifest

    done = run_command("corpus", f"output_dir={tmp_path}/c", "train=9", "dev=3", "test=4", "verbose=false")
    assert done.returncode == 0, done.stderr
    splits = {name: list(read_manifest(tmp_path / "c" / f"{name}.jsonl")) for name in ("train", "dev", "test")}
    assert [len(rows) for rows in splits.values()] == [9, 3, 4]
    voices = [{u.tags["speaker"] for u in rows} for rows in splits.values()]
    texts = [{u.text for u in rows} for rows in splits.values()]
    assert sum(map(len, voices)) == len(set.union(*voices))
    assert sum(map(len, texts)) == len(set.union(*texts)) == 16
    for utterance in splits["test"]:
        audio, rate = soundfile.read(utterance.audio_filepath)
        assert rate == 16000
        assert abs(len(audio) / rate - utterance.duration) < 1e-3
        assert 0.05 < np.abs(audio).max() <= 1.0
