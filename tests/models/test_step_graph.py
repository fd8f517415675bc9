"""Decoding steps of fixed shapes: equal to steps that grow, the same operations for every token, and no waits."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ssl_asr.console import Notice
from ssl_asr.decoding.beam import beam_search
from ssl_asr.decoding.greedy import greedy_decode
from ssl_asr.decoding.step_model import Constraints
from ssl_asr.models import cache_block, decoding_state, step_graph
from ssl_asr.models.attention import TransformerAttentionHead
from ssl_asr.models.step_graph import StepGraphs
from tests.waits import no_waits

SIZE, ROWS, WIDTH = 11, 4, 16
HEAD = TransformerAttentionHead(
    blocks=0,
    width=8,
    norm="layer",
    activation="relu",
    dropout=0.0,
    decoder_layers=2,
    heads=2,
    feed_forward=16,
    decoder_dropout=0.0,
    max_tokens=60,
)


@pytest.fixture
def decoder(monkeypatch):
    """Steps of fixed shapes on the CPU, with a short width, so that a text needs several."""
    monkeypatch.setattr(StepGraphs, "device_types", frozenset({"cpu"}))
    monkeypatch.setattr(decoding_state, "WIDTH", WIDTH)
    torch.manual_seed(4)
    made = HEAD.build(dim=8, vocab_size=SIZE).decoder.eval()
    made.net.embed_tokens.weight.data[0].mul_(2)
    return made


@pytest.fixture
def states():
    lengths = torch.tensor([9, 5, 7, 9])
    return 2 * torch.randn(ROWS, 9, 8, generator=torch.Generator().manual_seed(1)), lengths


class Recorder:
    """In place of a CUDA graph: runs the operations at each replay."""

    def __init__(self, wrong=0.0, error=None):
        self.records, self.replays, self.wrong, self.error = 0, 0, wrong, error

    def __call__(self, run):
        if self.error is not None:
            raise self.error
        self.records += 1

        def replay():
            self.replays += 1
            run().add_(self.wrong)

        return replay


def _record_with(monkeypatch, recorder):
    monkeypatch.setattr(StepGraphs, "record", lambda _, run, __: recorder(run))


@pytest.fixture
def growing(decoder, monkeypatch):
    """Runs a function with steps that grow."""

    def run(function):
        with monkeypatch.context() as context:
            context.setattr(StepGraphs, "device_types", frozenset())
            return function()

    return run


def _greedy(decoder, h, lengths, limits):
    constraints = Constraints(end_id=0, limits=limits)
    return [greedy_decode(decoder, h, lengths, [[0, 3]] * ROWS, constraints=constraints, check_every=4)]


def _beams(decoder, h, lengths, limits, beams=3):
    options = {"beam_size": beams, "length_penalty": 0.6, "n_best": beams, "check_every": 4}
    constraints = Constraints(end_id=0, limits=limits)
    return beam_search(decoder, h, lengths, [[0, 3]] * ROWS, constraints=constraints, **options)


def _equal(found, expected):
    for row, other in zip(found, expected, strict=True):
        assert [one.tokens for one in row] == [one.tokens for one in other]
        assert [one.score for one in row] == pytest.approx([one.score for one in other], abs=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
@torch.inference_mode()
def test_steps_of_fixed_shapes_equal_steps_that_grow(decoder, states, beams):
    h, lengths = states
    generator = torch.Generator().manual_seed(0)
    grown, fixed = (decoder.begin(h, lengths, 50) for _ in range(2))
    for state in (grown, fixed):
        first = decoder.step(torch.tensor([[0, 3]] * ROWS), state)
        assert first.shape == (ROWS, SIZE)
        state.spread(beams) if beams > 1 else None
    rows = ROWS * beams
    for step in range(45):
        tokens = torch.randint(SIZE, (rows, 1), generator=generator)
        if fixed.fixed is None or fixed.filled == fixed.fixed.width:
            fixed.fix()
            assert fixed.fixed.width == min(50, (fixed.filled // WIDTH + 1) * WIDTH)
        fixed.fixed.tokens_N1.copy_(tokens)
        found = decoder.fixed_step(fixed)
        fixed.filled += 1
        with pytest.MonkeyPatch.context() as context:
            context.setattr(StepGraphs, "device_types", frozenset())
            expected = decoder.step(tokens, grown)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        # Beams continue other beams of their utterance.
        own = torch.randint(beams, (ROWS, beams), generator=generator)
        parents = (torch.arange(ROWS)[:, None] * beams + own).flatten()
        for state in (grown, fixed):
            state.select(parents)
        if step == 20 and beams > 1:
            # Parents that are not applied yet survive a change of the batch.
            for state in (grown, fixed):
                state.keep(torch.arange(ROWS))
            assert fixed.fixed is None
    fixed.grow()
    for one, other in zip((*grown.self_k, *grown.self_v), (*fixed.self_k, *fixed.self_v), strict=True):
        torch.testing.assert_close(one[:, :, : grown.filled], other[:, :, : grown.filled])


class _Operations(TorchDispatchMode):
    """Names of all operations, with the shapes of their inputs."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        shapes = [tuple(one.shape) if isinstance(one, Tensor) else one for one in args]
        self.seen.append((func._schema.name, func._schema.overload_name, repr(shapes)))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("beams", [1, 3])
@torch.no_grad()
def test_every_token_of_a_width_makes_the_same_operations_and_none_waits(decoder, states, beams):
    """What a CUDA graph needs. Sizes of views are in the shapes of what reads them."""
    h, lengths = states
    state = decoder.begin(h, lengths, 40)
    decoder.step(torch.tensor([[0, 3]] * ROWS), state)
    if beams > 1:
        state.spread(beams)
    fixed = state.fix()
    addresses = [fixed.tokens_N1.data_ptr(), fixed.position_1.data_ptr(), state.self_k[0].data_ptr()]
    sequences = []
    for token in range(8):
        fixed.tokens_N1.fill_(token)
        with _Operations() as operations, no_waits():
            decoder.fixed_step(state)
        sequences.append(operations.seen)
    assert len(sequences[0]) > 50
    assert all(sequence == sequences[0] for sequence in sequences)
    assert addresses == [fixed.tokens_N1.data_ptr(), fixed.position_1.data_ptr(), state.self_k[0].data_ptr()]
    assert int(fixed.position_1) == 2 + 8


@pytest.mark.parametrize("search", [_greedy, _beams])
@torch.inference_mode()
def test_searches_with_replayed_steps_equal_searches_without(decoder, states, growing, monkeypatch, search):
    recorder = Recorder()
    _record_with(monkeypatch, recorder)
    for limits in ([40] * ROWS, [40, 3, 3, 3], [17, 30, 2, 9]):
        found = search(decoder, *states, limits)
        _equal(found, growing(lambda limits=limits: search(decoder, *states, limits)))
    assert recorder.replays > recorder.records > 0


@torch.inference_mode()
def test_few_tokens_are_not_recorded(decoder, states, monkeypatch):
    recorder = Recorder()
    _record_with(monkeypatch, recorder)
    monkeypatch.setattr(step_graph, "_LEAST_TOKENS", WIDTH)
    _greedy(decoder, *states, [40] * ROWS)
    # A first step has at least one token in the cache, unless its width follows another one.
    assert recorder.records <= 2


@pytest.mark.parametrize("search", [_greedy, _beams])
@pytest.mark.parametrize(
    ("faults", "reason"),
    [
        ({"wrong": 9.0}, "its results differ from those of torch"),
        ({"error": RuntimeError("operation not permitted when stream is capturing")}, "RuntimeError: operation"),
    ],
    ids=["wrong", "error"],
)
@torch.inference_mode()
def test_a_graph_that_does_not_work_is_said_once_and_not_used(
    decoder, states, growing, monkeypatch, faults, reason, search
):
    recorder = Recorder(**faults)
    _record_with(monkeypatch, recorder)
    expected = growing(lambda: search(decoder, *states, [40] * ROWS))
    with pytest.warns(Notice, match=f"CUDA graphs do not work \\({reason}") as seen:
        found = [search(decoder, *states, [40] * ROWS) for _ in range(2)]
    assert len(seen) == 1
    for one in found:
        _equal(one, expected)
    assert recorder.records <= 1


@torch.inference_mode()
def test_steps_grow_where_shapes_cannot_be_fixed(decoder, states, monkeypatch):
    monkeypatch.setattr(StepGraphs, "record", lambda *_: pytest.fail("a step is recorded"))
    tokens = torch.tensor([[1]] * ROWS)
    state = decoder.begin(*states, 40)
    assert not decoder._graphs.takes(state, tokens), "a prompt"
    decoder.step(tokens, state)
    assert decoder._graphs.takes(state, tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not decoder._graphs.takes(state, tokens)
    with torch.inference_mode(False), torch.enable_grad():
        assert not decoder._graphs.takes(state, tokens)
    state.watch = True
    assert not decoder._graphs.takes(state, tokens)
    monkeypatch.undo()
    assert not decoder._graphs.takes(decoder.begin(*states, 40), tokens), "a CPU"


def _batch(rows, frames, seed=0):
    """Encoder states of a batch of this shape, of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.linspace(3, frames, rows).long()
    return 2 * torch.randn(rows, frames, 8, generator=generator), lengths


def _search(decoder, h, lengths, limits, beams):
    if beams == 1:
        constraints = Constraints(end_id=0, limits=limits)
        return [greedy_decode(decoder, h, lengths, [[0, 3]] * len(h), constraints=constraints, check_every=4)]
    options = {"beam_size": beams, "length_penalty": 0.6, "n_best": beams, "check_every": 4}
    constraints = Constraints(end_id=0, limits=limits)
    return beam_search(decoder, h, lengths, [[0, 3]] * len(h), constraints=constraints, **options)


@pytest.mark.parametrize("beams", [1, 3])
@torch.inference_mode()
def test_graphs_serve_later_batches_of_other_lengths_and_rows(decoder, growing, monkeypatch, beams):
    recorder = Recorder()
    _record_with(monkeypatch, recorder)
    records = []
    # Rows round to 16 and frames to 64; the last batches shrink to 8, 4, 2 and 1 rows.
    for rows, frames in ((16, 60), (11, 40), (9, 64), (13, 17), (16, 33)):
        batch = _batch(rows, frames, seed=rows)
        limits = [40 if row % 2 else 9 for row in range(rows)]
        found = _search(decoder, *batch, limits, beams)
        _equal(found, growing(lambda batch=batch, limits=limits: _search(decoder, *batch, limits, beams)))
        records.append(recorder.records)
    assert records[0] > 0
    # Batches shrink to different numbers of rows, but soon nothing is new.
    before = recorder.records
    for rows, frames in ((16, 60), (11, 40), (9, 64), (13, 17), (16, 33)):
        _search(decoder, *_batch(rows, frames, seed=rows), [40 if row % 2 else 9 for row in range(rows)], beams)
    assert recorder.records == before


@torch.inference_mode()
def test_a_batch_of_the_same_shape_records_nothing(decoder, monkeypatch):
    recorder = Recorder()
    _record_with(monkeypatch, recorder)
    for seed in range(3):
        _search(decoder, *_batch(9, 50, seed), [12] * 9, 1)
        assert recorder.records == 1
    assert recorder.replays > 12


@torch.no_grad()
def test_moving_a_batch_to_the_memory_of_a_graph_does_not_wait(decoder, monkeypatch):
    _record_with(monkeypatch, Recorder())
    _search(decoder, *_batch(9, 50), [12] * 9, 1)
    state = decoder.begin(*_batch(11, 40), 40)
    decoder.step(torch.tensor([[0, 3]] * 11), state)
    with no_waits():
        for _ in range(5):
            decoder.step(torch.tensor([[1]] * 11), state)
    assert decoder._graphs._memory.is_owner(state)


@torch.inference_mode()
def test_windows_of_one_length_keep_their_frames_and_need_no_mask(decoder, growing, monkeypatch):
    recorder = Recorder()
    _record_with(monkeypatch, recorder)
    h, lengths = torch.randn(ROWS, 50, 8), torch.full((ROWS,), 50)
    found = _search(decoder, h, lengths, [12] * ROWS, 1)
    state = decoder._graphs._current.state
    assert state.cross_mask is None
    assert state.cross_k[0].shape[2] == 50
    _equal(found, growing(lambda: _search(decoder, h, lengths, [12] * ROWS, 1)))
    # A single utterance may have any length, so its shape is rounded.
    found = _search(decoder, h[:1], lengths[:1], [12], 1)
    assert decoder._graphs._current.state.cross_k[0].shape[2] == 64
    _equal(found, growing(lambda: _search(decoder, h[:1], lengths[:1], [12], 1)))


@torch.inference_mode()
def test_a_larger_batch_gets_more_memory(decoder, growing, monkeypatch):
    recorder = Recorder()
    _record_with(monkeypatch, recorder)
    for rows, frames in ((2, 20), (24, 150), (2, 20)):
        batch = _batch(rows, frames)
        found = _search(decoder, *batch, [12] * rows, 1)
        _equal(found, growing(lambda batch=batch, rows=rows: _search(decoder, *batch, [12] * rows, 1)))
    # The second batch dropped the graph of the first one.
    assert recorder.records == 3


@pytest.mark.parametrize("change", ["assign", "copy", "layer", "hook"])
@torch.inference_mode(False)
@torch.no_grad()
def test_other_weights_are_never_decoded_with_graphs_of_the_weights_before(decoder, growing, monkeypatch, change):
    recorder = Recorder()
    _record_with(monkeypatch, recorder)
    batch = _batch(9, 50)

    def search():
        return _search(decoder, *batch, [12] * 9, 1)

    before = search()
    if change == "hook":
        # What a hook computes may change at any time.
        decoder.net.layers[0].fc2.register_forward_hook(lambda _, __, out: out + decoder.shift * torch.arange(8))
        decoder.shift = 0.0
        _equal(search(), before)
        decoder.shift = 5.0
    else:
        weights = {name: torch.randn_like(one) for name, one in decoder.net.state_dict().items()}
        if change == "layer":
            decoder.net.layers[0].fc2 = torch.nn.Linear(16, 8)
        else:
            decoder.net.load_state_dict(weights, assign=change == "assign")
    after = search()
    _equal(after, growing(search))
    assert [one.score for one in after[0]] != pytest.approx([one.score for one in before[0]], abs=1e-3)
    # Weights that change in place stay where the graph reads them.
    assert recorder.records == {"assign": 2, "copy": 1, "layer": 2, "hook": 3}[change]


@torch.inference_mode()
def test_two_searches_at_once_do_not_mix(decoder, growing, monkeypatch):
    """One search step by step while others come and go in the same memory."""
    _record_with(monkeypatch, Recorder())
    h, lengths = _batch(9, 50)
    state = decoder.begin(h, lengths, 40)
    expected_state = decoder.begin(h, lengths, 40)
    generator = torch.Generator().manual_seed(3)
    for step in range(12):
        tokens = torch.randint(SIZE, (9, 1), generator=generator)
        expected = growing(lambda tokens=tokens: decoder.step(tokens, expected_state))
        torch.testing.assert_close(decoder.step(tokens, state), expected, rtol=1e-5, atol=1e-5)
        if step % 3 == 2:
            _search(decoder, *_batch(9, 50, seed=step), [9] * 9, 1)
        if step == 7:
            for one in (state, expected_state):
                one.spread(1)


@torch.inference_mode()
def test_beams_of_a_search_that_stopped_do_not_mix_those_of_the_next_one(decoder, growing, monkeypatch):
    """The last choice of parents is still to be applied, in the memory of a later width."""
    _record_with(monkeypatch, Recorder())
    h, lengths = _batch(9, 50)
    generator = torch.Generator().manual_seed(5)
    for _ in range(2):
        state, expected_state = (decoder.begin(h, lengths, 40) for _ in range(2))
        for one in (state, expected_state):
            growing(lambda one=one: decoder.step(torch.tensor([[0, 3]] * 9), one))
            one.spread(3)
        for _ in range(WIDTH + 4):
            tokens = torch.randint(SIZE, (27, 1), generator=generator)
            expected = growing(lambda tokens=tokens, other=expected_state: decoder.step(tokens, other))
            torch.testing.assert_close(decoder.step(tokens, state), expected, rtol=1e-5, atol=1e-5)
            parents = torch.randint(3, (9, 3), generator=generator) + 3 * torch.arange(9)[:, None]
            for one in (state, expected_state):
                one.select(parents.flatten())


@torch.inference_mode()
def test_values_that_are_not_numbers_do_not_reach_the_next_batch(decoder, growing, monkeypatch):
    _record_with(monkeypatch, Recorder())
    h, lengths = _batch(16, 60)
    _search(decoder, h * torch.nan, lengths, [30] * 16, 3)
    batch = _batch(9, 40)
    _equal(_search(decoder, *batch, [30] * 9, 3), growing(lambda: _search(decoder, *batch, [30] * 9, 3)))


def test_training_frees_the_memory_of_graphs(decoder, monkeypatch):
    _record_with(monkeypatch, Recorder())
    h, lengths = _batch(9, 50)
    with torch.no_grad():
        _search(decoder, h, lengths, [12] * 9, 1)
        block = weakref.ref(decoder._graphs._memory._block)
        assert decoder(torch.tensor([[1]] * 9), h, lengths).shape == (9, 1, 8)
        assert block() is not None
    decoder(torch.tensor([[1]] * 9), h, lengths).sum().backward()
    gc.collect()
    assert block() is None


@torch.no_grad()
def test_a_copy_of_a_decoder_records_its_own_graphs(decoder, growing, monkeypatch):
    recorder = Recorder()
    _record_with(monkeypatch, recorder)
    batch = _batch(9, 50)
    _search(decoder, *batch, [12] * 9, 1)
    other = copy.deepcopy(decoder)
    for weight in other.parameters():
        weight.mul_(1.5)
    found = _search(other, *batch, [12] * 9, 1)
    _equal(found, growing(lambda: _search(other, *batch, [12] * 9, 1)))
    assert recorder.records == 2
    pickle.loads(pickle.dumps(decoder))


@torch.inference_mode()
def test_the_graph_used_least_recently_is_dropped(decoder, monkeypatch):
    monkeypatch.setattr(step_graph, "_KEEP", 2)
    recorder = Recorder()
    _record_with(monkeypatch, recorder)
    largest, middle, smallest = (_batch(rows, 20) for rows in (24, 16, 8))
    for batch, records in ((largest, 1), (middle, 2), (largest, 2), (smallest, 3), (largest, 3), (middle, 4)):
        _search(decoder, *batch, [12] * len(batch[0]), 1)
        assert recorder.records == records


def test_rounded_rows_leave_little_padding():
    for rows in range(1, 300):
        rounded = cache_block._round_rows(rows)
        assert rows <= rounded < 2 * rows
        assert rows < 25 or rounded - rows <= rounded / 4
        assert cache_block._round_rows(rounded) == rounded
    assert len({cache_block._round_rows(rows) for rows in range(1, 300)}) < 25


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("search", [_greedy, _beams])
@torch.inference_mode()
def test_graphs_on_a_gpu(states, monkeypatch, search):
    torch.manual_seed(4)
    decoder = HEAD.build(dim=8, vocab_size=SIZE).decoder.eval().cuda()
    h, lengths = states[0].cuda(), states[1]
    found = search(decoder, h, lengths, [50, 50, 3, 20])
    assert decoder._graphs._works
    monkeypatch.setattr(StepGraphs, "device_types", frozenset())
    _equal(found, search(decoder, h, lengths, [50, 50, 3, 20]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@torch.inference_mode()
def test_replayed_steps_do_not_wait_on_a_gpu(states):
    decoder = HEAD.build(dim=8, vocab_size=SIZE).decoder.eval().cuda()
    tokens = torch.tensor([[1]] * ROWS, device="cuda")
    state = decoder.begin(states[0].cuda(), states[1], 60)
    for _ in range(3):
        decoder.step(tokens, state)
    assert decoder._graphs._current.replay is not None
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            decoder.step(tokens, state)
    finally:
        torch.cuda.set_sync_debug_mode("default")
