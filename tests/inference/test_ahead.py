"""Encoding a batch while the one before it is decoded, with streams that only report what they are told."""

from contextlib import contextmanager

import pytest
import torch

from ssl_asr.data.dataset import collate
from ssl_asr.data.manifest import read_manifest
from ssl_asr.inference.ahead import EncoderAhead
from ssl_asr.inference.batches import transcribe_manifests
from ssl_asr.inference.long_form import NO_VAD, LongForm
from ssl_asr.inference.running import RunOptions
from ssl_asr.models.encoder import EncoderOutput
from ssl_asr.types import Example, Utterance
from tests.training.toy_runs import build, toy_overrides


class Streams:
    """Stands in for the streams of a GPU. The log has what each stream does, and for what it waits."""

    def __init__(self, monkeypatch):
        self.log, self.now, self.events = [], "main", 0
        monkeypatch.setattr(EncoderAhead, "device_types", frozenset({"cpu"}))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(self, self.now))
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(self, "side"))
        monkeypatch.setattr(torch.cuda, "stream", self.inside)
        monkeypatch.setattr(
            torch.Tensor, "record_stream", lambda own, stream: self.log.append(("keep", stream.name, own.data_ptr()))
        )

    @contextmanager
    def inside(self, stream):
        self.now = stream.name
        try:
            yield
        finally:
            self.now = "main"


class Stream:
    def __init__(self, streams, name):
        self.streams, self.name = streams, name

    def wait_stream(self, other):
        self.streams.log.append(("wait", self.name, other.name))

    def record_event(self):
        self.streams.events += 1
        self.streams.log.append(("event", self.name, self.streams.events))
        return self.streams.events

    def wait_event(self, event):
        self.streams.log.append(("wait", self.name, event))


class Model:
    def __init__(self, streams):
        self.streams, self.states = streams, []

    def encode(self, batch):
        self.streams.log.append(("encode", self.streams.now, batch.ids[0]))
        h_BFD, lengths_B = batch.waveform_BT[:, :, None] + 0, batch.lengths_B
        self.states.append(h_BFD)
        return EncoderOutput(h_BFD, lengths_B, lengths_B, (h_BFD + 1, h_BFD))


def batch(name):
    return collate([Example(Utterance(name, "", 1.0), torch.ones(4), [])])


def test_a_batch_is_encoded_before_the_one_before_it_is_returned(monkeypatch):
    streams = Streams(monkeypatch)
    ahead = EncoderAhead(Model(streams))
    assert ahead.put("first", batch("a")) is None
    ready = ahead.put("second", batch("b"))
    assert (ready.key, ready.batch.ids, ready.out.h_BFD.tolist()) == ("first", ["a"], [[[1.0]] * 4])
    assert [entry for entry in streams.log if entry[0] in ("encode", "event", "wait")] == [
        ("wait", "side", "main"),
        ("encode", "side", "a"),
        ("event", "side", 1),
        ("wait", "side", "main"),
        ("encode", "side", "b"),
        ("event", "side", 2),
        # For the states of the first batch, not for those of the second.
        ("wait", "main", 1),
    ]
    ready = ahead.rest()
    assert (ready.key, ready.batch.ids) == ("second", ["b"])
    assert streams.log[-1][:2] == ("keep", "main")
    assert ahead.rest() is None


def test_memory_of_either_stream_is_kept_until_the_other_has_read_it(monkeypatch):
    streams = Streams(monkeypatch)
    ahead, given = EncoderAhead(Model(streams)), batch("a")
    ahead.put("", given)
    assert ("keep", "side", given.waveform_BT.data_ptr()) in streams.log
    out = ahead.rest().out
    for states in (out.h_BFD, *out.layers):
        assert ("keep", "main", states.data_ptr()) in streams.log


def test_a_cpu_and_autocast_return_each_batch_at_once(monkeypatch):
    given = batch("a")
    ahead = EncoderAhead(None)
    ready = ahead.put("key", given)
    assert (ready.key, ready.batch, ready.out) == ("key", given, None)
    streams = Streams(monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        assert ahead.put("key", given).out is None
    assert streams.log == []
    assert ahead.rest() is None


@pytest.mark.parametrize("long_form", [NO_VAD, LongForm(chunk_s=30.0, stride_s=4.0)])
def test_predictions_are_the_same_and_none_is_lost(toy_checkpoints, toy_corpus, tmp_path, monkeypatch, long_form):
    module = build(tmp_path / "run", *toy_overrides(toy_checkpoints["wav2vec2_group"], toy_corpus)).module.eval()
    manifests = {name: read_manifest(toy_corpus[name]) for name in ("train", "dev")}
    run = RunOptions(max_batch_s=2.0, num_workers=0, accelerator="cpu")

    def predictions():
        written = []
        found = transcribe_manifests(
            module,
            manifests,
            run=run,
            long_form=long_form,
            on_predictions=lambda rows, _: written.append(rows),
            console=None,
        )
        rows = {name: [(row.id, row.hyp) for row in own] for name, own in found.predictions.items()}
        return rows, [[row.id for row in rows] for rows in written]

    expected, order = predictions()
    assert {name: [one for one, _ in rows] for name, rows in expected.items()} == {
        name: [utterance.id for utterance in one] for name, one in manifests.items()
    }
    assert len(order) > 2
    streams = Streams(monkeypatch)
    assert predictions() == (expected, order)
    assert len([entry for entry in streams.log if entry[0] == "encode" or entry[0] == "event"]) == len(order)
