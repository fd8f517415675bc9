"""Plans of training runs: their memory and time, and whether they fit."""

from dataclasses import replace
from io import StringIO

import pytest
from hydra import compose, initialize_config_dir
from rich.console import Console

from ssl_asr.build import budget
from ssl_asr.build.plan import MemoryEstimate, Plan, make_plan, planned_run, print_plan, verdict
from ssl_asr.config.folders import config_folder
from ssl_asr.config.nodes import register_schemas
from ssl_asr.config.resolve import resolve_command
from ssl_asr.errors import ConfigError
from ssl_asr.training.flops import TrainingFlops
from ssl_asr.training.step_memory import Shape, step_timeline
from tests.training.toy_runs import build, toy_overrides

AUTO = "data.max_batch_s=auto"


@pytest.fixture
def overrides(toy_checkpoints, toy_corpus):
    return [*toy_overrides(toy_checkpoints["whisper"], toy_corpus, "seq2seq"), "freeze=false"]


def plan_config(*overrides):
    register_schemas()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return resolve_command("plan", compose("plan", overrides=[*overrides]))


def test_plan_of_a_named_card(overrides):
    """Sizes are those of the model, the peak is that of the largest batch, and the time follows from operations."""
    config = plan_config(*overrides, "gpu=rtx 4090", "mfu=0.25", "trainer=gpu", "trainer.ema_decay=0.9")
    run = planned_run(config, None)
    plan = make_plan(run, config)
    trained = sum(p.numel() * 4 for p in run.module.parameters() if p.requires_grad)
    count = sum(p.requires_grad for p in run.module.parameters())
    tensors = [*run.module.parameters(), *run.module.buffers()]
    assert plan.memory.parameters == sum(each.numel() * each.element_size() for each in tensors)
    assert plan.memory.gradients == trained
    assert plan.memory.optimizer == 2 * trained + 4 * count
    largest = run.data.train_batch(max(run.data.train_sampler(0).batches, key=run.data.train_sampler(0).cost_s))
    timeline, _ = step_timeline(run.module, largest, run.trainer.precision_plugin.forward_context, as_cuda=True)
    # The average of the weights is one more copy of them.
    needed = 2 * plan.memory.parameters + plan.memory.optimizer + max(timeline)
    assert plan.memory.peak == pytest.approx(needed, rel=0.05)
    flops = TrainingFlops(run.module, run.data.train_kept[0])
    tokens = run.data.selections["train"].targets.tokens_N
    assert plan.epoch_flops == pytest.approx(flops.of(run.data.train_kept.durations_N.tolist(), tokens.tolist()))
    assert plan.epoch_s == pytest.approx(plan.epoch_flops / (0.25 * 165.2e12))
    assert plan.room == 24e9
    assert plan.budget_s == 3.0
    written = StringIO()
    print_plan(plan, "bf16-mixed", Console(file=written, width=120))
    for words in ("optimizer states", "mfu=0.25 of 165.2 TFLOP/s, which is assumed", "It fits: about 0.0"):
        assert words in written.getvalue()


@pytest.mark.parametrize("head", ["attention_gru", "attention_transformer"])
@pytest.mark.parametrize("family", ["wav2vec2_layer", "whisper"])
def test_plan_of_joint_training(toy_checkpoints, toy_corpus, family, head):
    """The loss is read outside of a fit, also with a share of CTC that changes."""
    changes = ["task.ctc_weight_end=0.9", "task.ctc_weight_updates=5"]
    overrides = [*toy_overrides(toy_checkpoints[family], toy_corpus, "joint"), f"head={head}", "freeze=false"]
    config = plan_config(*overrides, *changes, "gpu=24")
    run = planned_run(config, None)
    plan = make_plan(run, config)
    largest = run.data.train_batch(max(run.data.train_sampler(0).batches, key=run.data.train_sampler(0).cost_s))
    timeline, _ = step_timeline(run.module, largest, run.trainer.precision_plugin.forward_context, as_cuda=True)
    needed = plan.memory.parameters + plan.memory.optimizer + max(timeline)
    assert plan.memory.peak == pytest.approx(needed, rel=0.05)


def test_largest_budget_is_on_the_border_of_the_memory(overrides):
    """The memory of a made-up card is what batches of 12 s need, and a tenth is left free."""
    config = plan_config(*overrides, "gpu=1", "data.max_batch_s=12")
    run = planned_run(config, None)
    needed_gb = make_plan(run, config).memory.peak / 0.9e9
    made = make_plan(run, replace(config, gpu=needed_gb * 1.02, data=replace(config.data, max_batch_s="auto")))
    assert made.budget_s == made.largest_budget_s
    assert 8.0 < made.budget_s < 13.0
    assert made.memory.peak <= 0.9 * made.room
    assert made.epoch_s is None
    assert "It fits" in verdict(made)
    assert f"data.max_batch_s={made.budget_s:g} is the largest that takes at most" in verdict(made)


# What a batch takes and is allowed to take, of a device of 20 GB, with and without a budget that fits.
@pytest.mark.parametrize(
    ("peak_gb", "rows", "largest_s", "expected"),
    [
        (
            17.0,
            3,
            40.0,
            "It fits: about 17.00 of 20.00 GB. data.max_batch_s=40 is the largest that takes at most 18.00",
        ),
        (17.0, 3, 0.0, "It fits: about 17.00 of 20.00 GB. data.max_batch_s of the longest utterance would take more"),
        (19.0, 3, 40.0, "It may fit: about 19.00 of 20.00 GB, and at most 18.00 GB is safe. data.max_batch_s=40 is"),
        (19.0, 1, 0.0, "It may fit: about 19.00 of 20.00 GB, and at most 18.00 GB is safe. No batch with the longest"),
        (21.0, 3, 40.0, "It does not fit: about 21.00 of 20.00 GB. data.max_batch_s=40 is the largest"),
        (21.0, 3, 0.0, "It does not fit: about 21.00 of 20.00 GB. No batch with the longest utterance takes at most"),
        (21.0, 1, 0.0, "It does not fit: about 21.00 of 20.00 GB. Not even one utterance fits: use a smaller"),
    ],
)
def test_verdicts_do_not_contradict_themselves(peak_gb, rows, largest_s, expected):
    shape = Shape(rows=rows, computed_s=9.0, width=5, tokens=5 * rows, sum_s=9.0 * rows, sum_s2=81.0 * rows)
    memory = MemoryEstimate(
        parameters=1, gradients=1, optimizer=1, activations=1, peak=int(peak_gb * 1e9), largest=shape, batches=1
    )
    plan = Plan(
        device="a GPU",
        room=int(20e9),
        allowed=int(18e9),
        memory=memory,
        budget_s=9.0 * rows,
        largest_budget_s=largest_s,
        epoch_flops=1.0,
        epoch_s=None,
        because="",
    )
    assert verdict(plan).startswith(expected)


@pytest.mark.parametrize("devices", [1, 2])
def test_plan_of_this_machine_allows_what_training_takes(overrides, tmp_path, monkeypatch, devices):
    """The largest budget is what the search for data.max_batch_s=auto starts at."""
    available = [0]
    monkeypatch.setattr(budget, "available_bytes", lambda _: available[0])
    monkeypatch.delenv("SSL_ASR_MAX_BATCH_S", raising=False)
    more = [f"trainer.devices={devices}", "trainer.strategy=auto"]
    config = plan_config(*overrides, *more, AUTO)
    run = planned_run(config, None)
    available[0] = 10**9
    needed = make_plan(run, config).memory.peak
    available[0] = int(needed * 2 * devices)
    plan = make_plan(planned_run(config, None), config)
    estimates, real = [], budget.Budgets.estimated
    monkeypatch.setattr(
        budget.Budgets, "estimated", lambda own, room: estimates.append(real(own, room)) or estimates[-1]
    )
    monkeypatch.setattr(budget.Budgets, "proven", lambda own, room, _: own.estimated(room))
    chosen_s = build(tmp_path, *overrides, *more, AUTO).config.data.max_batch_s
    assert plan.largest_budget_s == chosen_s
    assert estimates[0] > 0


def test_several_devices_share_an_epoch_and_copy_gradients(overrides):
    one, two = (plan_config(*overrides, "gpu=T4", f"trainer.devices={number}") for number in (1, 2))
    alone, shared = (make_plan(planned_run(config, None), config) for config in (one, two))
    assert shared.epoch_s == pytest.approx(alone.epoch_s / 2)
    assert shared.memory.peak == pytest.approx(alone.memory.peak + alone.memory.gradients, rel=0.1)


def test_unknown_card_and_sharding_are_errors(overrides):
    with pytest.raises(ConfigError, match=r"gpu: is 'abacus', whose memory is unknown. Give its memory in GB"):
        planned_run(plan_config(*overrides, "gpu=abacus"), None)
    with pytest.raises(ConfigError, match=r"trainer.strategy: is fsdp2, and the memory of sharded weights"):
        plan_config(*overrides, "trainer.strategy=fsdp2")


def test_command_measures_this_machine_and_writes_nothing(overrides, run_command, tmp_path):
    done = run_command("plan", *overrides, "logger=csv", "trainer.profiler=simple", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in ("Memory of cpu, 32-true", "from two timed updates on the largest batch", "It fits"):
        assert words in done.stdout
    assert not list(tmp_path.iterdir())
