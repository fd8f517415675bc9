"""Workers that go on from epoch to epoch read what new workers would."""

import multiprocessing
import os
from dataclasses import replace

import pytest
import torch

from ssl_asr.data.augment.channels import Volume
from ssl_asr.data.state_store import StateStore
from tests.data.test_module import config, data_of  # noqa: F401
from tests.training.toy_runs import build, toy_overrides


def workers():
    return {process.pid for process in multiprocessing.active_children()}


def content(batches):
    return [(batch.ids, batch.waveform_BT, batch.lengths_B, batch.tokens_BU) for batch in batches]


def assert_equal(found, expected):
    assert [ids for ids, *_ in found] == [ids for ids, *_ in expected]
    for (_, *ours), (_, *theirs) in zip(found, expected, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.fixture
def changing(config):  # noqa: F811
    """Utterances whose speed, volume, order and joining change with the epoch."""
    config = replace(config, speed_factors=[0.9, 1.0, 1.1], tempo_factors=[0.8, 1.0], max_batch_s=2.5)
    augment = {"volume": Volume(gain_db=[-20.0, 20.0], probability=0.7)}

    def data(num_workers, epoch=0, **changes):
        return data_of(replace(config, num_workers=num_workers, **changes), epoch=epoch, audio_augment=augment)

    return data


@pytest.mark.parametrize("changes", [{}, {"concatenate_s": 3.0}])
def test_every_epoch_is_that_of_a_new_loader_and_workers_stay(changing, changes):
    data, pids = changing(2, **changes), []
    for epoch in (0, 1, 2, 1):
        data.trainer.current_epoch = epoch
        loader = data.train_dataloader()
        (dev,) = data.val_dataloader()
        found = [content(loader), content(dev)]
        pids.append(workers())
        alone = changing(0, epoch, **changes)
        assert_equal(found[0], content(alone.train_dataloader()))
        assert_equal(found[1], content(alone.val_dataloader()[0]))
    assert len(pids[0]) == 4
    assert pids == [pids[0]] * 4


def test_an_epoch_that_was_left_in_the_middle_leaves_nothing_to_the_next(changing):
    data = changing(2)
    for epoch in (0, 1):
        data.trainer.current_epoch = epoch
        loader = data.train_dataloader()
        batches = iter(loader)
        next(batches)
        assert loader.state_dict() == {"epoch": epoch, "batches": 1}
    data.trainer.current_epoch = 2
    assert_equal(content(data.train_dataloader()), content(changing(0, 2).train_dataloader()))
    # The same epoch again, from its second batch.
    loader = data.train_dataloader()
    loader.load_state_dict({"epoch": 2, "batches": 1})
    assert_equal(content(loader), content(changing(0, 2).train_dataloader())[1:])


def test_time_until_old_workers_go_on_is_waiting(changing, monkeypatch):
    data = changing(2)
    loader = data.train_dataloader()
    list(loader)
    iterator = type(loader._iterator)
    reset = iterator._reset

    def late(self, loader, first_iter=False):
        monkeypatch.setattr("ssl_asr.data.loaders.time.monotonic", lambda: 7.0)
        reset(self, loader, first_iter)

    before = loader.waited_s
    monkeypatch.setattr(iterator, "_reset", late)
    monkeypatch.setattr("ssl_asr.data.loaders.time.monotonic", lambda: 2.0)
    list(loader)
    assert loader.waited_s - before == pytest.approx(5.0)


class _Store(StateStore):
    """A store whose states are only names."""

    def __init__(self, names):
        self.names = names

    def refresh(self):
        pass

    def __len__(self):
        return len(self.names)

    def __contains__(self, utterance_id):
        return utterance_id in self.names


def test_workers_are_new_when_there_are_states_that_they_do_not_know(config):  # noqa: F811
    data = data_of(replace(config, num_workers=1))
    data.state_store = _Store(set())

    def read():
        """Ids of the utterances whose audio is read."""
        loader = data.train_dataloader()
        return loader, {name for batch in loader for name, n in zip(batch.ids, batch.lengths_B, strict=True) if n}

    everything = {f"train{number}" for number in range(6)}
    first, found = read()
    assert found == everything
    data.state_store.names = {"train1", "train2"}
    second, found = read()
    assert found == everything - {"train1", "train2"}
    third, found = read()
    assert found == everything - {"train1", "train2"}
    assert first is not second
    assert second is third


def test_no_worker_is_left_after_training(toy_checkpoints, toy_corpus, tmp_path):
    before, seen = workers(), []
    overrides = toy_overrides(toy_checkpoints["wav2vec2_group"], toy_corpus)
    run = build(tmp_path, *overrides, "data.num_workers=2", "trainer.max_epochs=3")
    on_end = run.module.on_train_epoch_end

    def note():
        seen.append(workers() - before)
        on_end()

    run.module.on_train_epoch_end = note
    run.trainer.fit(run.module, datamodule=run.data)
    assert len(seen) == 3
    assert seen[0]
    assert seen[1] == seen[2], "the workers of train and dev go on"
    assert workers() - before == set()
    assert os.getpid() not in seen[0]
