"""The tables at the start and at the end of a training run."""

import fnmatch
from types import SimpleNamespace

import pytest
from rich.console import Console

from ssl_asr.build import summary
from ssl_asr.data.text import get_normalizers
from ssl_asr.metrics.evaluation import evaluate_split
from ssl_asr.metrics.provenance import Clock
from ssl_asr.metrics.report import Prediction, print_scores
from ssl_asr.training.csv_log import read_curves
from tests.training.toy_runs import build, resolved, toy_overrides


def narrow():
    """A console as wide as a terminal usually is, which keeps what it prints."""
    return Console(record=True, width=80)


@pytest.fixture(scope="module")
def run(toy_checkpoints, toy_corpus, tmp_path_factory):
    overrides = toy_overrides(toy_checkpoints["wav2vec2_layer"], toy_corpus)
    return build(tmp_path_factory.mktemp("run"), *overrides, "freeze=true", "trainer.accumulate_grad_batches=2")


def test_start_names_data_model_updates_memory_and_folder(run, tmp_path):
    console = narrow()
    summary.print_start(run, tmp_path / "[my] run", tmp_path / "last.ckpt", console)
    text = " ".join(console.export_text().replace("│", " ").split())
    rows = run.module.group_table()
    total, trains = sum(row.total for row in rows), sum(row.trainable for row in rows)
    seconds = sum(utterance.duration for utterance in run.data.train_kept)
    for part in (
        f"ctc, {total:,} parameters, {trains:,} train",
        f"train 10 utterances, {seconds / 3600:.2f} h",
        "dev 4 utterances",
        "test 5 utterances",
        f"{run.module.total_updates} in 2 epochs",
        "batches of up to 3 s, 2 in an update",
        "cpu, 32-true",
        "at its peak (weights 0.00, gradients",
        "continues from",
    ):
        assert part in text
    assert "[my] run" in text.replace(" ", "").replace("[my]run", "[my] run")


def test_weights_in_bfloat16_and_a_first_start_with_resume_are_shown(toy_checkpoints, toy_corpus, tmp_path):
    """The estimate of memory takes float32 weights. It ended every run with weights in bfloat16."""
    overrides = toy_overrides(toy_checkpoints["wav2vec2_layer"], toy_corpus)
    own = build(tmp_path, *overrides, "trainer.precision=bf16-true", "resume=auto")
    console = narrow()
    summary.print_start(own, tmp_path, None, console)
    text = " ".join(console.export_text().replace("│", " ").split())
    assert "cpu, bf16-true" in text
    assert "GB; more in training " in text
    assert "nothing: no checkpoint is saved yet" in text


def test_a_run_that_scores_nothing_says_that_it_is_finished_and_its_speed(toy_checkpoints, toy_corpus, tmp_path):
    overrides = toy_overrides(toy_checkpoints["wav2vec2_layer"], toy_corpus)
    own, console = build(tmp_path, *overrides, "data.dev=null", "logger=csv"), Console(record=True, width=200)
    summary.print_end(own, tmp_path, {}, Clock(), console)
    assert "not measured" in console.export_text()
    own.trainer.fit(own.module, datamodule=own.data)
    summary.print_end(own, tmp_path, {}, Clock(), console)
    text = console.export_text()
    assert "Finished in" in text
    assert "last.ckpt" in text
    curves = read_curves(tmp_path)
    last = {name: values[-1][1] for name, values in curves.items()}
    shown = (
        f"{last['train/audio_s_per_s']:.1f} s of audio a second, {last['train/loader_wait']:.1%} of the time waiting"
    )
    assert f"{shown} for the loader, {last['train/peak_gb']:.2f} GB at the peak" in text


@pytest.mark.parametrize(
    ("total", "batches", "overrides", "shown"),
    [
        (10, 5, [], "10 in 2 epochs. The first epoch has 5 batches of up to 3 s"),
        (
            9,
            5,
            [],
            "9 in 2 epochs. The first epoch has 5 batches of up to 3 s. "
            "Each epoch forms its own batches, so their number may differ",
        ),
        (6, 5, ["trainer.accumulate_grad_batches=2"], "6 in 2 epochs. * has 5 batches of up to 3 s, 2 in an update"),
        (4, 5, ["trainer.limit_train_batches=2"], "4 in 2 epochs. The first epoch uses 2 of 5 batches of up to 3 s"),
        (2, 5, ["trainer.fast_dev_run=2"], "2 in 1 epoch (fast_dev_run). The first epoch uses 2 of 5 batches *"),
        (7, 5, ["trainer.max_steps=7"], "7 in at most 2 epochs. The first epoch has 5 batches of up to 3 s"),
    ],
)
def test_updates_name_the_batches_of_the_first_epoch(total, batches, overrides, shown, toy_checkpoints, toy_corpus):
    config = resolved(*toy_overrides(toy_checkpoints["wav2vec2_layer"], toy_corpus), *overrides)
    assert fnmatch.fnmatchcase(summary._updates(total, batches, config), shown)


def test_end_has_scores_with_intervals_and_commands_that_can_be_copied(run, monkeypatch, tmp_path):
    folder = tmp_path / ("very long name " * 8)
    monkeypatch.setattr(summary, "best_checkpoint", lambda _: SimpleNamespace(best_model_path="best.ckpt"))
    rows = [Prediction(id=str(n), ref="a b", hyp="a x", score=0.0, duration=1.0, audio_filepath="") for n in range(4)]
    console = narrow()
    evaluations = {"test": evaluate_split("test", rows, [], get_normalizers(["lower"]))}
    summary.print_end(run, folder, evaluations, Clock(), console)
    text = console.export_text()
    assert "test WER" in text
    assert "50.00 % (50.00 - 50.00), lower" in text
    assert "best checkpoint" in text
    lines = text.splitlines()
    assert lines[-3:] == [f"  {command}" for command in summary.next_commands(run, folder)]
    assert [line.split()[1] for line in lines[-3:]] == ["evaluate", "transcribe", "export"]
    assert f"'model={folder}'" in lines[-1]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0 s"), (59, "59 s"), (60, "1 min 0 s"), (3661, "1 h 1 min"), (7199, "1 h 59 min")]
)
def test_durations(seconds, shown):
    assert summary._duration(seconds) == shown


def test_table_of_scores_fits_80_columns():
    rows = [
        Prediction(
            id=str(n), ref="a b c d", hyp="a x c d" if n % 3 else "a b c d", score=0.0, duration=1.0, audio_filepath=""
        )
        for n in range(3000)
    ]
    normalizers = get_normalizers(["lower", "whisper_english"])
    console = narrow()
    print_scores("test", evaluate_split("test", rows, [], normalizers).scores, console)
    lines = console.export_text().splitlines()
    [row] = [line for line in lines if "whisper" in line]
    assert "whisper_english" in row
    assert "16.67" in row
    assert sum(line.startswith("│") for line in lines) == 2, "no row is wrapped"
