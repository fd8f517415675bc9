"""The Triton kernels of attention with a position bias: against torch and loops, by Triton's interpreter."""

import math
from contextlib import nullcontext

import pytest
import torch

from ssl_asr.console import Notice
from ssl_asr.models import position_bias, relative_check, triton_kernels
from ssl_asr.models.position_bias import GatedBias
from ssl_asr.models.ragged import Dense, Packed, leave_out_of_graphs
from ssl_asr.models.relative_check import by_kernel, by_torch, kept_by_kernel
from tests.gpu.encoder import check_kernel
from tests.waits import no_waits

NAMES = ("out", "q", "k", "v", "gate", "relative")

# Run in the child process ----------------------------------------------------------------------------------------


def results(inputs, lengths, factors, *, dropout=0.0, seed=1, guarded=False, frozen=()):
    """The output, and the gradients of its weighted sum. ``frozen`` names inputs without a gradient."""
    from ssl_asr.models.relative_kernel import packed_attention

    inputs = [x.detach().requires_grad_(name not in frozen) for name, x in zip(NAMES[1:], inputs, strict=True)]
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    seed_1 = torch.tensor([seed])
    with no_waits() if guarded else nullcontext():
        out = packed_attention(*inputs, offsets, longest=max(lengths, default=0), dropout=dropout, seed=seed_1)
        out.backward(factors.to(out.dtype))
    return [out.detach(), *(x.grad for x in inputs)]


def results_of_slices(joined, gate, relative, lengths, factors):
    """As `results`, for queries, keys and values that are slices of one tensor, and a gradient that is expanded."""
    return results([*joined.chunk(3, 1), gate, relative], lengths, factors.expand(len(joined), -1))


def outputs_of_calls(inputs, lengths, dropout):
    """Two calls without a seed, and two with torch's seed set before."""
    from ssl_asr.models.relative_kernel import packed_attention

    offsets, found = torch.tensor([0, *lengths]).cumsum(0).int(), []
    for reset in (False, False, True, True):
        if reset:
            torch.manual_seed(5)
        found.append(packed_attention(*inputs, offsets, longest=max(lengths), dropout=dropout))
    return found


def kept_sizes(inputs, lengths):
    """Numbers of values that are kept for backward, without the inputs."""
    kept, inputs = [], [x.requires_grad_() for x in inputs]
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        by_kernel(inputs, lengths, dropout=0.1, seed=1)
    return sorted(x.numel() for x in kept if not any(x is y for y in inputs))


def second_derivative(inputs, lengths):
    inputs = [x.requires_grad_() for x in inputs]
    out = by_kernel(inputs, lengths, dropout=0.0, seed=1)
    gradients = torch.autograd.grad(out.sum(), inputs, create_graph=True)
    try:
        sum(x.sum() for x in gradients).backward()
    except RuntimeError as error:
        return str(error)
    return "no error"


class _OnGpu(torch.Tensor):
    """Claims to be on a GPU."""

    is_cuda = True


def attend_as_on_a_gpu(q, k, v, gate, relative, lengths, width, *, has_kernel, compiled=False, dense=False):
    """The output of a layout that takes its tensors for tensors of a GPU, and how often the kernel was used."""
    from ssl_asr.models import relative_kernel

    heads, calls, launch = gate.shape[-1], [], relative_kernel.packed_attention
    asked = position_bias.has_kernel
    position_bias.has_kernel = lambda *about: has_kernel
    relative_kernel.packed_attention = lambda *inputs, **options: calls.append(1) or launch(*inputs, **options)
    q = q if compiled else q.as_subclass(_OnGpu)
    try:
        layout = Dense(width, None) if dense else Packed.of(torch.tensor(lengths), width, torch.device("cpu"))
        attend = layout.attend_on_gpu if compiled else layout.attend
        if compiled:
            leave_out_of_graphs()
            attend = torch.compile(layout.attend_on_gpu, backend="eager")
        out = attend(q, k, v, heads=heads, dropout=0.0, bias=GatedBias(gate, relative))
    finally:
        position_bias.has_kernel, relative_kernel.packed_attention = asked, launch
    return out.as_subclass(torch.Tensor), len(calls)


def agreements(dim):
    """The check at first use: in each type, in inference mode, and with a dropout mask that backward does not have."""
    cpu, right = torch.device("cpu"), relative_check.by_kernel
    with torch.inference_mode():
        found = [relative_check.kernel_agrees(cpu, dtype, dim) for dtype in relative_check.TOLERANCES]
    state = torch.get_rng_state()

    def wrong_output(*inputs, **options):
        return 1.03 * right(*inputs, **options)

    def wrong_mask(*inputs, seed, **options):
        # The mask is read twice. The values of the first call are those of another seed.
        wrong_mask.calls += 1
        return right(*inputs, seed=seed + (wrong_mask.calls == 2), **options)

    for wrong in (wrong_output, wrong_mask):
        wrong.calls = 0
        relative_check.by_kernel = wrong
        found.append(relative_check.kernel_agrees(cpu, torch.bfloat16, dim))
    relative_check.by_kernel = right
    return [*found, torch.equal(state, torch.get_rng_state())]


def check_on_a_card(lengths, dtype, dropouts, error):
    def attend(*inputs, **options):
        return (1 + error) * by_kernel(*inputs, **options)

    check_kernel("cpu", lengths, dtype=dtype, heads=2, dim=8, attend=attend, dropouts=dropouts)


# References ------------------------------------------------------------------------------------------------------


def random_inputs(lengths, *, heads=2, dim=8, width=None, dtype=torch.float32):
    """Queries, keys, values, gates and biases, and factors of the output."""
    rows, width = sum(lengths), width or max(lengths)
    sizes = [(rows, heads * dim)] * 3 + [(rows, heads), (heads, 2 * width - 1)]
    return [torch.randn(size).to(dtype) for size in sizes], torch.randn(rows, heads * dim).to(dtype)


def results_of(compute, inputs, factors):
    """Output and gradients in float64."""
    inputs = [x.detach().double().requires_grad_() for x in inputs]
    out = compute(inputs)
    return [out.detach(), *torch.autograd.grad((out * factors).sum(), inputs)]


def assert_near(found, expected, tolerance):
    for name, one, other in zip(NAMES, found, expected, strict=True):
        error = (one.double() - other).abs().max() / other.abs().max().clamp(min=1.0)
        assert error < tolerance, f"{name} differs by {float(error):.1e}"


def by_loops(inputs, lengths, kept=None, dropout=0.0):
    """The definition, number by number."""
    q, k, v, gate, relative = inputs
    heads, middle = gate.shape[1], relative.shape[1] // 2
    dim, start, rows = q.shape[1] // heads, 0, []
    for utterance, frames in enumerate(lengths):
        for i in range(frames):
            parts = []
            for head in range(heads):
                own = slice(head * dim, (head + 1) * dim)
                scores = []
                for j in range(frames):
                    product = sum(q[start + i, own][d] * k[start + j, own][d] for d in range(dim))
                    bias = gate[start + i, head] * relative[head, middle + j - i]
                    scores.append(product / math.sqrt(dim) + bias)
                total = sum(score.exp() for score in scores)
                mixed = torch.zeros(dim, dtype=q.dtype)
                for j, score in enumerate(scores):
                    factor = 1.0 if kept is None else float(kept[utterance][head, i, j]) / (1 - dropout)
                    mixed = mixed + factor * score.exp() / total * v[start + j, own]
                parts.append(mixed)
            rows.append(torch.cat(parts))
        start += frames
    return torch.stack(rows)


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_output_and_gradients_equal_loops(interpreter, dropout):
    lengths = [3, 1, 0, 4]
    inputs, factors = random_inputs(lengths, dim=3, width=6)
    kept = interpreter(kept_by_kernel, inputs, lengths, dropout=dropout, seed=1) if dropout > 0 else None
    expected = results_of(lambda given: by_loops(given, lengths, kept, dropout), inputs, factors)
    assert_near(interpreter(results, inputs, lengths, factors, dropout=dropout), expected, 5e-6)


@pytest.mark.parametrize(
    ("lengths", "dim", "width"),
    [
        ([37, 0, 1, 32, 70, 64, 0], 8, 75),  # blocks of 32 keys, 64 queries
        ([130], 8, 130),
        ([33, 1], 64, 33),
        ([1, 45], 80, 50),
        ([1, 1], 8, 1),
    ],
    ids=str,
)
def test_output_and_gradients_equal_torch_in_float64(interpreter, lengths, dim, width):
    inputs, factors = random_inputs(lengths, dim=dim, width=width)
    expected = results_of(lambda given: by_torch(given, lengths), inputs, factors)
    assert_near(interpreter(results, inputs, lengths, factors), expected, 5e-6)


@pytest.mark.parametrize("seed", range(3))
def test_output_and_gradients_equal_torch_on_random_batches(interpreter, seed):
    torch.manual_seed(seed)
    lengths = [1, *torch.randint(0, 90, (int(torch.randint(1, 4, ())),)).tolist()]
    heads, dim = int(torch.randint(1, 4, ())), int(torch.randint(1, 40, ()))
    inputs, factors = random_inputs(lengths, heads=heads, dim=dim, width=max(lengths) + seed)
    expected = results_of(lambda given: by_torch(given, lengths), inputs, factors)
    assert_near(interpreter(results, inputs, lengths, factors), expected, 1e-5)


# The interpreter cuts digits of bfloat16, and a GPU rounds them.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_half_precision_is_read_and_written_and_computed_in_float32(interpreter, dtype, tolerance, dropout):
    lengths = [70, 1, 64]  # blocks of 64 keys, 128 queries
    inputs, factors = random_inputs(lengths, dim=24, dtype=dtype)
    kept = interpreter(kept_by_kernel, inputs, lengths, dropout=dropout, seed=1) if dropout > 0 else None
    expected = results_of(lambda given: by_torch(given, lengths, dropout=dropout, kept=kept), inputs, factors)
    found = interpreter(results, inputs, lengths, factors, dropout=dropout)
    assert [x.dtype for x in found] == [dtype] * 6
    assert_near(found, expected, tolerance)


def test_states_may_be_in_half_precision_and_the_bias_in_float32(interpreter):
    """As under autocast."""
    lengths = [20, 3]
    inputs, factors = random_inputs(lengths)
    states = [x.bfloat16() for x in inputs[:3]]
    found = interpreter(results, [*states, *inputs[3:]], lengths, factors.bfloat16())
    assert [x.dtype for x in found] == [torch.bfloat16] * 4 + [torch.float32] * 2
    expected = results_of(lambda given: by_torch(given, lengths), [*states, *inputs[3:]], factors.bfloat16())
    assert_near(found, expected, 3e-2)


# Dropout ---------------------------------------------------------------------------------------------------------


def test_gradients_with_dropout_are_those_of_the_mask_of_the_forward_pass(interpreter):
    lengths, dropout = [70, 1, 40], 0.3
    inputs, factors = random_inputs(lengths, dim=24)
    kept = interpreter(kept_by_kernel, inputs, lengths, dropout=dropout, seed=7)
    expected = results_of(lambda given: by_torch(given, lengths, dropout=dropout, kept=kept), inputs, factors)
    assert_near(interpreter(results, inputs, lengths, factors, dropout=dropout, seed=7), expected, 2e-5)


@pytest.mark.parametrize("dropout", [0.1, 0.6])
def test_dropout_drops_its_share_of_weights_independently(interpreter, dropout):
    lengths = [96, 50]
    inputs, _ = random_inputs(lengths, dim=32)
    kept = interpreter(kept_by_kernel, inputs, lengths, dropout=dropout, seed=2)

    def assert_share(dropped, share):
        # Five standard deviations.
        limit = 5 * math.sqrt(share * (1 - share) / dropped.numel())
        assert abs(float(dropped.double().mean()) - share) < limit

    tables = [~kept[0][0], ~kept[0][1], ~kept[1][0]]
    for table in tables:
        assert_share(table, dropout)
    # Pairs of weights: of neighbors, of halves of a word, of a call of Philox, of heads and of utterances.
    first = tables[0]
    for by in (1, 2, 4, 8):
        assert_share(first[:, by:] & first[:, :-by], dropout**2)
        assert_share(first[by:] & first[:-by], dropout**2)
    assert_share(first & first.T, dropout**2 * (1 - 1 / 96) + dropout / 96)
    assert_share(first & tables[1], dropout**2)
    assert_share(first[:50, :50] & tables[2], dropout**2)


def test_seeds_differ_from_call_to_call(interpreter):
    inputs, _ = random_inputs([30])
    first, second, third, fourth = interpreter(outputs_of_calls, inputs, [30], 0.2)
    assert not torch.equal(first, second)
    assert torch.equal(third, fourth)


# Batches and layouts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_neighbors_change_nothing(interpreter, dropout):
    """The utterance alone, with a narrower bias, and before others, one of which is NaN."""
    lengths, width = [70, 33, 40], 80
    inputs, factors = random_inputs(lengths, width=width)
    for x in inputs[:4]:
        x[70:103] = math.nan
    found = interpreter(results, inputs, lengths, factors, dropout=dropout)
    narrow = inputs[4][:, width - 70 : width + 69]
    alone = interpreter(results, [x[:70] for x in inputs[:4]] + [narrow], [70], factors[:70], dropout=dropout)
    for one, other in list(zip(found, alone, strict=True))[:5]:
        assert torch.equal(one[:70], other)
        assert one[70:103].isnan().all()
        assert one[103:].isfinite().all()


def test_results_are_equal_in_every_run(interpreter):
    lengths = [40, 70]
    inputs, factors = random_inputs(lengths)
    runs = [interpreter(results, inputs, lengths, factors, dropout=0.2) for _ in range(2)]
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("lengths", [[], [0, 0]])
def test_batches_without_frames_have_no_output(interpreter, lengths):
    inputs, factors = random_inputs(lengths, width=1)
    out, *gradients = interpreter(results, inputs, lengths, factors)
    assert out.shape == (0, 16)
    assert not any(x.any() for x in gradients)


def test_states_may_be_slices_and_the_gradient_expanded(interpreter):
    lengths = [20, 7]
    inputs, factors = random_inputs(lengths)
    joined, row = torch.cat(inputs[:3], 1), factors[:1]
    found = interpreter(results_of_slices, joined, *inputs[3:], lengths, row)
    for one, other in zip(found, interpreter(results, inputs, lengths, row.expand_as(factors)), strict=True):
        assert torch.equal(one, other)


def test_a_frozen_bias_changes_no_other_gradient(interpreter):
    """As with LoRA, whose weights are the only ones that train."""
    lengths = [40]
    inputs, factors = random_inputs(lengths)
    found = interpreter(results, inputs, lengths, factors, frozen=("relative",))
    assert found[5] is None
    for one, other in list(zip(found, interpreter(results, inputs, lengths, factors), strict=True))[:5]:
        assert torch.equal(one, other)


# Autograd and the host -------------------------------------------------------------------------------------------


def test_the_host_never_waits(interpreter):
    lengths = [5, 9]
    inputs, factors = random_inputs(lengths)
    interpreter(results, inputs, lengths, factors, dropout=0.1, guarded=True)


def test_no_table_of_pairs_is_kept_for_backward(interpreter):
    """Kept are the output, one number for each row and head, the offsets and the seed."""
    inputs, _ = random_inputs([100, 30])
    assert interpreter(kept_sizes, inputs, [100, 30]) == [1, 3, 130 * 2, 130 * 16]


def test_second_derivatives_are_refused(interpreter):
    inputs, _ = random_inputs([4])
    assert "no second derivative" in interpreter(second_derivative, inputs, [4])


# Where the kernels are used --------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_kernel", [True, False])
def test_packed_rows_on_a_gpu_use_the_kernel_if_there_is_one(interpreter, has_kernel):
    lengths, width = [9, 4, 1], 9
    inputs, _ = random_inputs(lengths, width=width)
    out, launches = interpreter(attend_as_on_a_gpu, *inputs, lengths, width, has_kernel=has_kernel)
    torch.testing.assert_close(out, by_torch(inputs, lengths))
    assert launches == has_kernel


@pytest.mark.parametrize("has_kernel", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
def test_rows_of_equal_lengths_on_a_gpu_use_the_kernel_if_there_is_one(interpreter, has_kernel, compiled):
    lengths, width = [7, 7, 7], 7
    inputs, _ = random_inputs(lengths)
    padded = [x.view(3, 7, -1) for x in inputs[:4]]
    options = {"has_kernel": has_kernel, "compiled": compiled, "dense": True}
    out, launches = interpreter(attend_as_on_a_gpu, *padded, inputs[4], lengths, width, **options)
    torch.testing.assert_close(out.flatten(0, 1), by_torch(inputs, lengths))
    assert launches == has_kernel


def test_check_at_first_use_finds_wrong_kernels(interpreter):
    assert interpreter(agreements, 8) == [True, True, True, False, False, True]


@pytest.fixture
def has_kernel():
    relative_check.has_kernel.cache_clear()
    yield relative_check.has_kernel
    relative_check.has_kernel.cache_clear()


def test_kernel_is_used_on_gpus_where_it_agrees_with_torch(has_kernel, monkeypatch):
    monkeypatch.setattr(relative_check, "kernel_agrees", lambda *about: True)
    assert not has_kernel(torch.device("cpu"), torch.float32, 64)
    assert not has_kernel(torch.device("cuda", 0), torch.float64, 64)
    assert has_kernel(torch.device("cuda", 0), torch.bfloat16, 64)
    monkeypatch.setattr(triton_kernels, "find_spec", lambda name: None)
    assert not has_kernel(torch.device("cuda", 0), torch.bfloat16, 80)


def test_torch_is_used_with_one_warning_where_the_kernel_fails(has_kernel, monkeypatch):
    monkeypatch.setattr(relative_check, "kernel_agrees", lambda *about: False)
    message = r"\(torch.bfloat16, 64 features per head\): the Triton kernel does not run on cuda:0 \(its results differ"
    with pytest.warns(Notice, match=message) as seen:
        assert [has_kernel(torch.device("cuda", 0), torch.bfloat16, 64) for _ in range(2)] == [False, False]
    assert len(seen) == 1


@pytest.mark.parametrize(("dtype", "dropouts"), [(torch.float32, (0.0, 0.1)), (torch.bfloat16, (0.0,))])
def test_check_on_a_card_accepts_the_kernel(interpreter, dtype, dropouts):
    """The check that `tests.gpu` runs, by the interpreter."""
    interpreter(check_on_a_card, [9, 1, 0, 35], dtype, dropouts, 0.0)


def test_check_on_a_card_finds_a_wrong_kernel(interpreter):
    with pytest.raises(AssertionError, match="differs from torch"):
        interpreter(check_on_a_card, [5], torch.bfloat16, (0.0,), 0.05)


# Compiled --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "dim", "dropout", "tf32"),
    [
        (torch.bfloat16, 64, 0.1, False),
        (torch.bfloat16, 64, 0.0, False),
        (torch.float16, 80, 0.1, False),
        (torch.float32, 64, 0.1, True),
        (torch.float32, 80, 0.1, False),
        # Tiles are padded to 16 features.
        (torch.bfloat16, 8, 0.1, False),
    ],
    ids=str,
)
def test_kernels_compile_for_a_gpu(compiled, monkeypatch, dtype, dim, dropout, tf32):
    """By Triton's own compiler, which needs no GPU. Registers are not spilled to memory, except a few numbers."""
    from ssl_asr.models.relative_kernel import packed_attention

    precision = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"
    try:
        inputs, _ = random_inputs([50, 20], dim=dim)
        inputs = [x.to(dtype if place < 3 else None).requires_grad_() for place, x in enumerate(inputs)]
        offsets = torch.tensor([0, 50, 70], dtype=torch.int32)
        packed_attention(*inputs, offsets, longest=50, dropout=dropout).sum().backward()
    finally:
        torch.backends.cuda.matmul.fp32_precision = precision
    assert compiled.names == ["forward", "rows", "columns", "distance"]
    compiled.check()
    assert max(compiled.stack_bytes()) <= 64
