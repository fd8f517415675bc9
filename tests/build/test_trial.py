"""The trial of a run: its sizes are those of the model, and it learns one batch or says that it cannot."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from ssl_asr.build.trial import measure, print_trial
from ssl_asr.errors import TrainingError
from tests.training.toy_runs import build, toy_overrides


@pytest.fixture
def overrides(toy_checkpoints, toy_corpus):
    return [*toy_overrides(toy_checkpoints["wav2vec2_layer"], toy_corpus), "freeze_policy=feature_encoder"]


def test_sizes_are_those_of_the_model_and_time_grows_with_the_run(overrides, tmp_path):
    rates = [f"optimizers.{side}.lr=1e-3" for side in ("encoder", "rest")]
    run = build(tmp_path, *overrides, *rates, "trainer.max_epochs=3", "trainer.accumulate_grad_batches=2")
    trial = measure(run, None)
    sizes = [(p.numel() * 4, p.requires_grad) for p in run.module.parameters()]
    trained = sum(size for size, trains in sizes if trains)
    assert trial.parameters == sum(size for size, _ in sizes)
    assert trial.gradients == trained
    # Adam keeps two numbers of each weight that trains, and one step of each tensor.
    assert trial.optimizer == 2 * trained + 4 * sum(trains for _, trains in sizes)
    assert trial.checkpoint == trial.parameters + trial.optimizer
    assert trial.activations > 0
    assert trial.last_loss < trial.first_loss
    assert trial.updates == run.module.total_updates
    longest = max(run.data.train_sampler(0).durations_N)
    assert longest <= trial.batch_s <= 3.0
    # The mean batch is no longer than the longest.
    assert 0 < trial.run_s <= trial.update_s * trial.updates * (1 + 1e-6)
    assert not list(tmp_path.rglob("*.ckpt"))
    written = StringIO()
    print_trial(replace(trial, run_s=7260.0), Console(file=written, width=100))
    for words in ("optimizer states", "activations", "2 h 1 min", "before", "after"):
        assert words in written.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        ("wav2vec2_layer", "joint", "head=attention_gru"),
        ("wav2vec2_layer", "joint", "head=attention_transformer"),
        ("whisper", "joint", "head=attention_transformer"),
        ("whisper", "seq2seq", "task.ctc_weight=0.3"),
    ],
    ids=" ".join,
)
def test_tasks_whose_loss_has_two_parts_are_measured_without_a_warning(
    toy_checkpoints, toy_corpus, tmp_path, options, recwarn
):
    """The parts are logged in training steps only. A share of CTC that changes is that of the first update."""
    family, task, more = options
    changes = ["task.ctc_weight_end=0.9", "task.ctc_weight_updates=5"] if task == "joint" else []
    rates = [f"optimizers.{side}.lr=1e-3" for side in ("encoder", "rest")]
    overrides = [*toy_overrides(toy_checkpoints[family], toy_corpus, task), more, *changes, *rates, "freeze=false"]
    run = build(tmp_path, *overrides)
    recwarn.clear()
    assert measure(run, None).last_loss > 0
    assert not [str(warning.message) for warning in recwarn if "self.log" in str(warning.message)]


def test_a_run_that_does_not_learn_is_an_error(overrides, tmp_path):
    rates = [f"optimizers.{side}.lr=0" for side in ("encoder", "rest")]
    run = build(tmp_path, *overrides, *rates, "backbone.hidden_dropout=0", "head.dropout=0", "backbone.layerdrop=0")
    with pytest.raises(
        TrainingError, match="doctor: the loss of one batch of . utterances went from .* nothing is learned"
    ):
        measure(run, None)


def test_doctor_measures_a_run_and_writes_nothing(overrides, run_command, tmp_path):
    more = ["trainer.max_epochs=1", "logger=csv", "trainer.profiler=simple"]
    done = run_command("doctor", *overrides, *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in ("This machine", "torch and torchaudio", "optimizer states", "all updates"):
        assert words in done.stdout
    assert not list(tmp_path.iterdir())
