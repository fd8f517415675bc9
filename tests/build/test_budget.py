"""The largest batches that fit: the search, its proof by passes with a limit of memory, and agreement of ranks."""

from dataclasses import replace
from io import StringIO

import pytest
import torch
from omegaconf import OmegaConf
from rich.console import Console

from ssl_asr.build import budget
from ssl_asr.build.start import start_run
from ssl_asr.build.training import build_training, write_beginning
from ssl_asr.config.options import plain
from ssl_asr.errors import ConfigError
from ssl_asr.training.checkpoint_files import KEY
from ssl_asr.training.step_memory import step_timeline
from tests.training.toy_runs import build, resolved, run_train, toy_overrides

AUTO = "data.max_batch_s=auto"


@pytest.fixture
def overrides(toy_checkpoints, toy_corpus):
    return [*toy_overrides(toy_checkpoints["wav2vec2_layer"], toy_corpus), "freeze=false"]


@pytest.fixture
def room(overrides, tmp_path):
    """Available memory of the CPU for batches of three of the longest utterances, and these seconds."""
    run = build(tmp_path, *overrides)
    longest_s = float(run.data.train_kept.durations_N.max())
    run.data.config = replace(run.data.config, max_batch_s=3 * longest_s)
    peaks = [
        max(step_timeline(run.module, run.data.train_batch(batch), run.trainer.precision_plugin.forward_context)[0])
        for batch in run.data.train_sampler(0).batches
    ]
    needed = max(peaks) + budget.standing_bytes(run.module, run.config, 1)
    return int(needed * 1.02 / budget.SHARE_OF_CPU), longest_s


@pytest.fixture
def available(monkeypatch, room):
    monkeypatch.setattr(budget, "available_bytes", lambda _: room[0])
    monkeypatch.delenv("SSL_ASR_MAX_BATCH_S", raising=False)
    return room


@pytest.mark.parametrize("most", [1, 2, 7, 40])
@pytest.mark.parametrize("start", [1, 5, 40])
def test_search_finds_the_largest_number_that_fits(most, start):
    for limit in range(45):
        asked = []
        found = budget.search(lambda n: asked.append(n) or n <= limit, start=start, most=most)  # noqa: B023
        exact = min(limit, most)
        assert exact - exact / 16 <= found <= exact
        assert found in asked or found == 0
        assert all(1 <= number <= most for number in asked)
        assert len(asked) == len(set(asked))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_errors_of_memory_are_no_room(error):
    def fail():
        raise error

    assert not budget.has_room(fail)
    assert budget.has_room(lambda: None)


def test_other_errors_are_raised():
    def fail():
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        budget.has_room(fail)


def test_largest_budget_in_the_memory_is_chosen_proven_and_saved(overrides, available, tmp_path, monkeypatch):
    """One utterance more, of the longest, does not fit."""
    tried = []
    real = budget.has_room

    def noted(run):
        tried.append(real(run))
        return tried[-1]

    monkeypatch.setattr(budget, "has_room", noted)
    weights = build(tmp_path, *overrides).module.state_dict()
    written = StringIO()
    run = build_training(resolved(*overrides, AUTO), tmp_path, Console(file=written, width=200))
    chosen_s = run.config.data.max_batch_s
    assert chosen_s == pytest.approx(3 * available[1], abs=0.011)
    assert run.data.config.max_batch_s == chosen_s
    assert True in tried
    assert False in tried
    assert f"data.max_batch_s=auto: chose {chosen_s:g} s, 3 times the longest utterance" in written.getvalue()
    assert all(torch.equal(value, weights[name]) for name, value in run.module.state_dict().items())
    assert all(parameter.grad is None for parameter in run.module.parameters())
    write_beginning(run, tmp_path, resumed=False)
    assert OmegaConf.load(tmp_path / "config.yaml").data.max_batch_s == chosen_s
    assert resolved(*overrides, f"data.max_batch_s={chosen_s}") == replace(run.config, run_dir="unused")


def test_a_budget_is_found_for_joint_training(toy_checkpoints, toy_corpus, tmp_path, monkeypatch):
    monkeypatch.delenv("SSL_ASR_MAX_BATCH_S", raising=False)
    overrides = toy_overrides(toy_checkpoints["wav2vec2_layer"], toy_corpus, "joint")
    run = build(tmp_path, *overrides, "head=attention_gru", AUTO)
    total_s = float(run.data.train_kept.durations_N.sum())
    # All fits, and the budget is a number of the longest utterance.
    assert total_s <= run.config.data.max_batch_s < 2 * total_s + 2


def test_memory_without_room_for_one_utterance_is_an_error(overrides, available, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "available_bytes", lambda _: available[0] // 20)
    with pytest.raises(ConfigError, match=r"data.max_batch_s: is auto, and not even one utterance of \d"):
        build(tmp_path, *overrides, AUTO)
    monkeypatch.setattr(budget, "available_bytes", lambda _: None)
    with pytest.raises(ConfigError, match=r"data.max_batch_s: is auto, and the memory of cpu is unknown"):
        build(tmp_path, *overrides, AUTO)


def test_the_smallest_of_all_ranks_counts(overrides, available, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "over_ranks", lambda own: [*own, 2])
    run = build(tmp_path, *overrides, AUTO)
    assert run.config.data.max_batch_s == pytest.approx(2 * available[1], abs=0.011)


def test_sharded_weights_are_refused(overrides):
    with pytest.raises(
        ConfigError, match=r"data.max_batch_s: is auto, which does not work with trainer.strategy=fsdp2"
    ):
        resolved(*overrides, AUTO, "trainer.strategy=fsdp2")


@pytest.mark.slow
@pytest.mark.parametrize("start", ["lightning", "torchrun"])
def test_ranks_train_with_one_budget_and_a_resumed_run_keeps_it(overrides, tmp_path, start):
    """Batches of both ranks would differ in number otherwise, and the run would hang."""
    two = ["trainer.devices=2", "trainer.strategy=ddp", "trainer.max_epochs=1", AUTO]
    launched = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "ssl_asr.train"]
    how = {"start": launched} if start == "torchrun" else {}
    chosen = run_train(tmp_path, *overrides, *two, **how)[KEY]["config"]["data"]["max_batch_s"]
    assert chosen > 0
    longer = [*overrides, "trainer.max_epochs=2", f"run_dir={tmp_path}", "resume=auto", AUTO]
    config = resolved(*longer[:-3], AUTO)
    run, _ = start_run(replace(config, run_dir=str(tmp_path), resume="auto"), tmp_path, None)
    assert plain(run.config)["data"]["max_batch_s"] == chosen
