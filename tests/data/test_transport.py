"""Batches in one piece of memory, against `collate`."""

import os
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from torch.utils.data._utils.pin_memory import pin_memory

from ssl_asr.data import transport
from ssl_asr.data.audio import read_waveform
from ssl_asr.data.dataset import collate
from ssl_asr.data.loaders import NoticingLoader, ResumableLoader
from ssl_asr.data.transport import PackedBatch, packed
from ssl_asr.data.workers import prepare_worker
from ssl_asr.types import Example, Notice, Skip, Utterance
from tests.waits import OnDevice

TENSORS = ("waveform_BT", "lengths_B", "tokens_BU", "token_lengths_B")
SKIP = Skip("bad", "a.jsonl:1", "missing_file", "bad.wav", 1.0)
STEP = 1 / 32768


def example(samples, tokens=(), name="u", notices=()):
    waveform_T = torch.as_tensor(samples, dtype=torch.float32)
    return Example(Utterance(name, "", 1.0, tags={"speaker": 1}), waveform_T, list(tokens), tuple(notices))


def integers(length, seed=0):
    """Noise of 16 bits."""
    return torch.randint(-32768, 32768, (length,), generator=torch.Generator().manual_seed(seed)) * STEP


def floats(length, seed=0):
    return torch.rand(length, generator=torch.Generator().manual_seed(seed)) - 0.5


def bits(tensor):
    return tensor.numpy().tobytes()


def assert_same(batch, reference):
    for name in TENSORS:
        ours, theirs = getattr(batch, name), getattr(reference, name)
        assert (ours.dtype, ours.shape, ours.device) == (theirs.dtype, theirs.shape, theirs.device), name
        assert ours.is_contiguous()
        assert bits(ours) == bits(theirs), name
    for name in ("utterances", "skipped", "notices"):
        assert getattr(batch, name) == getattr(reference, name)


INT16 = {
    "16-bit audio": [example(integers(50, 1), [5, 6, 7]), example(integers(33, 2), [8])],
    "the ends of the range": [example([-32768 * STEP, 32767 * STEP, 0.0, STEP, -STEP], [2])],
    "no examples": [SKIP],
    "no items": [],
    "no audio": [example([], [3, 4]), example([], [5])],
    "some without audio": [example([], [3, 4]), example(integers(7)), SKIP],
    "no tokens": [example(integers(9)), example(integers(4))],
    "large token ids": [example(integers(9), [40_000, 2**31, 2**40]), example(integers(4), [70_000])],
    "notices": [example(integers(9), notices=[Notice("u", "clipped")]), SKIP],
    "lists of items": [[example(integers(9), [1]), SKIP], example(integers(3), [2, 3])],
}
FLOAT32 = {
    "floats": [example(floats(50), [5, 6, 7]), example(floats(33), [8])],
    "one of two": [example(integers(50)), example(floats(20))],
    "above the range": [example([32768 * STEP])],
    "below the range": [example([-32769 * STEP])],
    # Integers that overflow to others of 16 bits.
    "far out of range": [example([65536 * STEP, 65537 * STEP, 2**32 * STEP, 1e30])],
    "between two steps": [example(torch.arange(-9, 9) * STEP + STEP / 2)],
    "the next float": [example(torch.nextafter(torch.tensor([100 * STEP]), torch.tensor([1.0])))],
    "subnormal": [example([1e-40])],
    "negative zero": [example([0.5, -0.0])],
    "not a number": [example([0.5, float("nan")])],
    "infinite": [example([0.5, float("inf")])],
    "minus infinite": [example([-float("inf")])],
    "the last sample": [example(torch.cat([integers(70_000), torch.tensor([0.1])]))],
}


@pytest.mark.parametrize("name", [*INT16, *FLOAT32])
def test_a_packed_batch_is_bitwise_the_batch(name):
    items = (INT16 | FLOAT32)[name]
    reference = collate(items)
    made = packed(items)
    assert_same(made.to("cpu"), reference)
    assert made.layout.sample_type == (torch.int16 if name in INT16 else torch.float32)
    with torch.inference_mode():
        assert_same(packed(items).to("cpu"), reference)


def test_int16_halves_the_bytes():
    made = packed([example(integers(160_000), range(50))])
    assert 2 * 160_000 < made.piece_N.nbytes < 2 * 160_000 + 1000
    assert made.piece_N.nbytes < 0.51 * packed([example(floats(160_000), range(50))]).piece_N.nbytes


def test_samples_of_a_16_bit_file_are_int16_and_those_of_other_rates_are_not(tmp_path):
    samples_T = np.random.default_rng(0).integers(-32768, 32768, 8000).astype(np.int16)
    types = {}
    for rate in (16_000, 8_000):
        path = str(tmp_path / f"{rate}.flac")
        soundfile.write(path, samples_T, rate, subtype="PCM_16")
        items = [example(read_waveform(Utterance("u", path, 8000 / rate)))]
        assert_same(packed(items).to("cpu"), collate(items))
        types[rate] = packed(items).layout.sample_type
    assert types == {16_000: torch.int16, 8_000: torch.float32}


class Copies(TorchDispatchMode):
    """Notes the bytes and the ``non_blocking`` of each copy to another device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._schema.name == "aten::_to_copy" and kwargs.get("device") not in (None, args[0].device):
            self.found.append((args[0].nbytes, kwargs.get("non_blocking", False)))
        return func(*args, **kwargs)


@pytest.mark.parametrize("items", [INT16["16-bit audio"], FLOAT32["floats"]], ids=["int16", "float32"])
def test_a_batch_is_pinned_once_and_copied_to_the_device_once_without_a_wait(items, monkeypatch):
    pinned = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: pinned.append(tensor.nbytes) or tensor.clone())
    made = packed(items)
    size = made.piece_N.nbytes
    # What the pinning thread of a DataLoader does.
    on_host = pin_memory(made)
    assert pinned == [size]
    # Values on the meta device cannot be read.
    with Copies() as copies:
        moved = on_host.to("meta", non_blocking=True)
    assert copies.found == [(size, True)]
    reference = collate(items)
    for name in ("waveform_BT", "tokens_BU"):
        ours, theirs = getattr(moved, name), getattr(reference, name)
        assert (ours.dtype, ours.shape, ours.device.type) == (theirs.dtype, theirs.shape, "meta")
    assert bits(moved.lengths_B) == bits(reference.lengths_B)
    assert bits(moved.token_lengths_B) == bits(reference.token_lengths_B)
    # Lightning moves the batch again.
    with Copies() as copies:
        assert moved.to("meta").waveform_BT is moved.waveform_BT
    assert copies.found == []
    with OnDevice([on_host.piece_N]) as device:
        assert_same(on_host.to("cpu", non_blocking=True), reference)
    assert device.seen > 0


def test_only_float32_samples_keep_the_piece_in_memory():
    def storages(batch):
        return {name for name in TENSORS if getattr(batch, name).untyped_storage().data_ptr() == piece}

    for items, expected in ((INT16["16-bit audio"], set()), (FLOAT32["floats"], {"waveform_BT"})):
        made = packed(items)
        piece = made.piece_N.untyped_storage().data_ptr()
        assert storages(made.to("cpu")) == expected


@pytest.mark.parametrize(("seconds", "by_value"), [(1, True), (8, True), (30, False)])
def test_small_pieces_are_sent_by_value_and_others_in_shared_memory(seconds, by_value):
    items = [example(integers(16_000 * seconds), [1, 2])]
    made = packed(items)
    sent = ForkingPickler.dumps(made)
    assert (len(sent) > made.piece_N.nbytes) == by_value
    assert len(sent) < made.piece_N.nbytes + 2000
    received = ForkingPickler.loads(sent)
    assert_same(received.to("cpu"), collate(items))
    # What is received may be written to.
    received.piece_N.zero_()


# Worker processes ------------------------------------------------------------------------------------------------


class Items:
    """A dataset in memory."""

    def __init__(self, items):
        self.items = items

    def __getitem__(self, index):
        return self.items[getattr(index, "unit", index)]


MIXED = [
    *(example(integers(500 + 40 * i, i), range(i), f"i{i}") for i in range(4)),
    *(example(floats(500 + 40 * i, i), range(i), f"f{i}", [Notice(f"f{i}", "quiet")]) for i in range(4)),
    SKIP,
    example([], [70_000], "cached"),
]
BATCHES = [[0, 1, 2], [3, 4], [5, 6, 7], [8], [9], [9, 8, 0]]


def loader_of(num_workers, *, kind=NoticingLoader, sampler=BATCHES, device="cpu", **options):
    return kind(
        dataset=Items(MIXED),
        sampler=sampler,
        device=torch.device(device),
        num_workers=num_workers,
        worker_init_fn=prepare_worker,
        generator=torch.Generator().manual_seed(0),
        **options,
    )


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_batches_and_notices_are_the_same_with_any_number_of_workers(num_workers):
    notices = {}
    batches = list(loader_of(num_workers, notices=notices))
    for batch, indices in zip(batches, BATCHES, strict=True):
        assert_same(batch, collate([MIXED[i] for i in indices]))
    assert [one.id for one in notices] == ["f0", "f1", "f2", "f3"]


def test_a_loader_with_workers_resumes_after_the_batches_that_it_gave():
    class Sampler(list):
        start = 0

        def __iter__(self):
            yield from self[self.start :]

    def loader():
        return loader_of(2, kind=ResumableLoader, sampler=Sampler(BATCHES), notices={}, epoch=3)

    first = loader()
    batches = iter(first)
    for _ in range(2):
        next(batches)
    again = loader()
    again.load_state_dict(first.state_dict())
    for batch, indices in zip(again, BATCHES[2:], strict=True):
        assert_same(batch, collate([MIXED[i] for i in indices]))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_gives_batches_on_its_device(num_workers):
    for batch, indices in zip(loader_of(num_workers, notices={}, device="meta"), BATCHES, strict=True):
        reference = collate([MIXED[i] for i in indices])
        assert batch.waveform_BT.device.type == batch.tokens_BU.device.type == "meta"
        assert (batch.waveform_BT.dtype, batch.waveform_BT.shape) == (torch.float32, reference.waveform_BT.shape)
        assert (batch.tokens_BU.dtype, batch.tokens_BU.shape) == (torch.int64, reference.tokens_BU.shape)
        assert bits(batch.lengths_B) == bits(reference.lengths_B)


def shared_files():
    """Number of files of shared memory that this process has open."""
    folder = Path("/proc/self/fd")
    links = []
    for name in os.listdir(folder):
        try:
            links.append(os.readlink(folder / name))
        except FileNotFoundError:
            continue
    return sum("/torch_" in link for link in links)


def test_a_worker_sends_one_storage_for_a_batch(monkeypatch):
    monkeypatch.setattr(transport, "_SMALL", 0)
    options = {"batch_sampler": BATCHES[:3], "num_workers": 1, "worker_init_fn": prepare_worker}
    before = shared_files()
    counts = {}
    for collate_fn in (collate, packed):
        received = list(DataLoader(Items(MIXED), collate_fn=collate_fn, **options))
        counts[collate_fn.__name__] = shared_files() - before
        if collate_fn is packed:
            assert all(isinstance(one, PackedBatch) for one in received)
            assert all(one.piece_N.is_shared() for one in received)
        del received
        assert shared_files() == before
    assert counts == {"collate": 4 * 3, "packed": 3}
    # Batches of int16 audio keep no file, and those of floats keep their own.
    batches = list(loader_of(1, notices={}, sampler=BATCHES[:3]))
    assert shared_files() - before == 2
    assert [batch.waveform_BT.is_shared() for batch in batches] == [False, True, True]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_reach_a_gpu_bitwise_and_without_a_wait(num_workers):
    torch.zeros(1, device="cuda")
    loader = loader_of(num_workers, notices={}, device="cuda")
    assert loader.pin_memory
    batches = list(loader)
    for batch, indices in zip(batches, BATCHES, strict=True):
        assert batch.waveform_BT.is_cuda
        assert batch.tokens_BU.is_cuda
        assert_same(batch.to("cpu"), collate([MIXED[i] for i in indices]))
    for items in (INT16["16-bit audio"], FLOAT32["floats"]):
        pinned = packed(items).pin_memory()
        pinned.to("cuda")
        torch.cuda.set_sync_debug_mode("error")
        try:
            moved = pinned.to("cuda", non_blocking=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert_same(moved.to("cpu"), collate(items))
