"""Decoding steps of fixed shapes: equal to steps that grow, the same operations for every token, and no waits."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ssl_asr.console import Notice
from ssl_asr.decoding.beam import beam_search
from ssl_asr.decoding.greedy import greedy_decode
from ssl_asr.decoding.step_model import Constraints
from ssl_asr.models import decoding_state, step_graph
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
    """In place of a CUDA graph: runs the operations at each replay, and writes their result to the same tensor."""

    def __init__(self, wrong=0.0, error=None):
        self.records, self.replays, self.wrong, self.error = 0, 0, wrong, error

    def __call__(self, run):
        if self.error is not None:
            raise self.error
        self.records += 1
        out: list[Tensor] = []

        def replay():
            self.replays += 1
            found = run()
            if not out:
                result.resize_(found.shape)
                out.append(result)
            result.copy_(found + self.wrong)

        result = torch.empty(0)
        return replay, result


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
    for limits in ([40] * ROWS, [40, 3, 3, 3], [17, 30, 2, 9]):
        recorder = Recorder()
        monkeypatch.setattr(StepGraphs, "record", lambda _, run, __, recorder=recorder: recorder(run))
        found = search(decoder, *states, limits)
        _equal(found, growing(lambda limits=limits: search(decoder, *states, limits)))
        assert recorder.replays > recorder.records > 0


@torch.inference_mode()
def test_few_tokens_are_not_recorded(decoder, states, monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(StepGraphs, "record", lambda _, run, __: recorder(run))
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
    monkeypatch.setattr(StepGraphs, "record", lambda _, run, __: recorder(run))
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
    assert state.fixed.replay is not None
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(20):
            decoder.step(tokens, state)
    finally:
        torch.cuda.set_sync_debug_mode("default")
