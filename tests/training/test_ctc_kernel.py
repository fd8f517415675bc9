"""The Triton kernel of the CTC loss: against torch, enumeration and differences, by Triton's interpreter."""

import itertools
import math
from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional

from ssl_asr.console import Notice
from ssl_asr.models import triton_kernels
from ssl_asr.training import ctc_loss
from tests.waits import no_waits

# Run in the child process ----------------------------------------------------------------------------------------


def kernel_losses(logits, labels, frame_lengths, label_lengths, *, blank=0, factors=None, guarded=False):
    """The losses, and the gradient of their sum or of their weighted sum."""
    from ssl_asr.training.ctc_kernel import ctc_loss

    logits = logits.requires_grad_()
    with no_waits() if guarded else nullcontext():
        losses = ctc_loss(logits, labels, frame_lengths, label_lengths, blank=blank)
        losses.backward(torch.ones_like(losses) if factors is None else factors)
    return losses.detach(), logits.grad


def losses_without_gradient(logits, *rest):
    from ssl_asr.training.ctc_kernel import ctc_loss

    with torch.no_grad():
        quiet = ctc_loss(logits.requires_grad_(), *rest, blank=0)
    return quiet, ctc_loss(logits.detach(), *rest, blank=0)


def second_derivative(logits, *rest):
    from ssl_asr.training.ctc_kernel import ctc_loss

    losses = ctc_loss(logits.requires_grad_(), *rest, blank=0)
    [gradient] = torch.autograd.grad(losses.sum(), logits, create_graph=True)
    try:
        gradient.sum().backward()
    except RuntimeError as error:
        return str(error)
    return "no error"


def losses_per_label(logits, frame_lengths, labels, label_lengths, *, kernel):
    """`ctc_losses` as on a GPU, or as on a CPU."""
    before, ctc_loss.has_kernel = ctc_loss.has_kernel, lambda device: kernel
    try:
        losses = ctc_loss.ctc_losses(logits.requires_grad_(), frame_lengths, labels, label_lengths)
    finally:
        ctc_loss.has_kernel = before
    losses.sum().backward()
    return losses.detach(), logits.grad


def agreements():
    """The check at first use: with the kernel, in inference mode, and with a kernel that is wrong by 1 %."""
    cpu, right = torch.device("cpu"), ctc_loss._kernel_losses
    with torch.inference_mode():
        found = [ctc_loss.kernel_agrees(cpu)]
    ctc_loss._kernel_losses = lambda *inputs: 1.01 * right(*inputs)
    try:
        return [*found, ctc_loss.kernel_agrees(cpu)]
    finally:
        ctc_loss._kernel_losses = right


# Against torch ---------------------------------------------------------------------------------------------------


def torch_losses(logits, labels, frame_lengths, label_lengths, *, blank=0, factors=None):
    """The same in float64 by torch."""
    logits = logits.detach().double().requires_grad_()
    log_probs = logits.log_softmax(-1).transpose(0, 1)
    lengths = (frame_lengths.long(), label_lengths.long())
    losses = functional.ctc_loss(log_probs, labels.long(), *lengths, blank, reduction="none", zero_infinity=True)
    losses.backward(torch.ones_like(losses) if factors is None else factors.double())
    return losses.detach(), logits.grad


def assert_equal_to_torch(interpreter, *inputs, **options):
    losses, gradient = interpreter(kernel_losses, *inputs, **options)
    expected, expected_gradient = torch_losses(*inputs, **options)
    torch.testing.assert_close(losses.double(), expected, rtol=2e-6, atol=1e-5)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=5e-6)


def random_case(*, batch=2, frames=7, vocabulary=6, labels=3, blank=0, scale=1.0):
    """Random logits and labels; all frames and labels count."""
    drawn = torch.randint(0, vocabulary - 1, (batch, labels))
    return (
        scale * torch.randn(batch, frames, vocabulary),
        drawn + (drawn >= blank),
        torch.full((batch,), frames),
        torch.full((batch,), labels),
    )


@pytest.mark.parametrize("blank", [0, 2, 5])
def test_equals_torch_with_any_blank(interpreter, blank):
    factors = torch.tensor([0.5, -2.0])
    assert_equal_to_torch(interpreter, *random_case(blank=blank), blank=blank, factors=factors)


def test_equals_torch_with_lengths_of_every_kind(interpreter):
    """Full, shorter, exactly fitting, too short by one frame, one frame, no label, no frame, nothing."""
    logits, labels, _, _ = random_case(batch=10, frames=7, labels=4)
    labels[:] = torch.tensor([1, 2, 2, 3])
    frame_lengths = torch.tensor([7, 6, 5, 4, 1, 3, 0, 0, 1, 7])
    label_lengths = torch.tensor([4, 3, 4, 4, 1, 0, 1, 0, 2, 2])
    assert_equal_to_torch(interpreter, logits, labels, frame_lengths, label_lengths)
    losses, gradient = interpreter(kernel_losses, logits, labels, frame_lengths, label_lengths)
    assert [row for row, loss in enumerate(losses.tolist()) if loss == 0] == [3, 6, 7, 8]
    assert [row for row, own in enumerate(gradient) if not own.any()] == [3, 6, 7, 8]


@pytest.mark.parametrize("labels", [[1, 1, 1], [1, 2, 1], [2, 2, 1]], ids=str)
def test_equals_torch_with_repeated_labels(interpreter, labels):
    logits, _, frame_lengths, label_lengths = random_case()
    assert_equal_to_torch(interpreter, logits, torch.tensor([labels, labels]), frame_lengths, label_lengths)


@pytest.mark.parametrize(
    "shape",
    [
        {"batch": 1, "frames": 75, "labels": 66, "vocabulary": 12},  # three tiles of labels, many repeats
        {"batch": 1, "frames": 60, "labels": 2, "vocabulary": 4},
        {"batch": 1, "frames": 6, "labels": 4, "vocabulary": 1500},  # two chunks
        {"batch": 1, "frames": 2, "labels": 1, "vocabulary": 50_257},
        {"batch": 2, "frames": 3, "labels": 0, "vocabulary": 2},
        {"batch": 0, "frames": 3, "labels": 2, "vocabulary": 3},
        {"batch": 2, "frames": 24, "labels": 9, "vocabulary": 30, "scale": 15.0},
    ],
    ids=lambda shape: "-".join(f"{value:g}" for value in shape.values()),
)
def test_equals_torch_for_any_size(interpreter, shape):
    case = random_case(**shape)
    if shape["batch"] == 0:  # torch's loss refuses an empty batch
        losses, gradient = interpreter(kernel_losses, *case)
        assert (losses.shape, gradient.shape) == ((0,), (0, 3, 3))
    else:
        assert_equal_to_torch(interpreter, *case)


@pytest.mark.parametrize("seed", range(4))
def test_equals_torch_on_random_batches(interpreter, seed):
    torch.manual_seed(seed)
    batch, frames, vocabulary, labels = (int(torch.randint(1, high, ())) for high in (5, 25, 40, 12))
    blank = int(torch.randint(0, vocabulary + 1, ()))
    logits, labels_BU, _, _ = random_case(
        batch=batch, frames=frames, vocabulary=vocabulary + 1, labels=labels, blank=blank, scale=3.0
    )
    lengths = torch.randint(0, frames + 1, (batch,)), torch.randint(0, labels + 1, (batch,))
    assert_equal_to_torch(interpreter, logits, labels_BU, *lengths, blank=blank, factors=torch.randn(batch))


def test_float32_is_more_precise_than_torch_on_long_recordings(interpreter):
    """Because the maximum is subtracted. The loss is some 1000 here, and torch loses three digits of the gradient."""
    case = random_case(batch=1, frames=120, vocabulary=8, labels=12, scale=10.0)
    expected, expected_gradient = torch_losses(*case)
    logits = case[0].clone().requires_grad_()
    theirs = functional.ctc_loss(logits.log_softmax(-1).transpose(0, 1), *case[1:], reduction="none")
    theirs.sum().backward()
    losses, gradient = interpreter(kernel_losses, *case)
    assert abs(losses - expected) <= abs(theirs.detach() - expected) + 1e-4
    assert (gradient - expected_gradient).abs().max() < 0.2 * (logits.grad - expected_gradient).abs().max()


# Against first principles ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("blank", [0, 2])
def test_equals_the_sum_over_all_alignments(interpreter, blank):
    """Three entries and four frames: 81 paths. The probabilities of all texts add up to one."""
    frames, vocabulary = 4, 3
    log_probs = torch.randn(frames, vocabulary).double().log_softmax(-1)
    expected = {}
    for path in itertools.product(range(vocabulary), repeat=frames):
        text = tuple(label for label, _ in itertools.groupby(path) if label != blank)
        score = sum(float(log_probs[frame, label]) for frame, label in enumerate(path))
        expected[text] = expected.get(text, 0.0) + math.exp(score)
    texts = list(expected)
    labels = torch.zeros(len(texts), frames, dtype=torch.long)
    for row, text in enumerate(texts):
        labels[row, : len(text)] = torch.tensor(text)
    inputs = (
        log_probs.float().expand(len(texts), -1, -1).contiguous(),
        labels,
        torch.full((len(texts),), frames),
        torch.tensor([len(text) for text in texts]),
    )
    losses, _ = interpreter(kernel_losses, *inputs, blank=blank)
    torch.testing.assert_close((-losses.double()).exp(), torch.tensor([expected[text] for text in texts]).double())
    assert math.isclose(float((-losses.double()).exp().sum()), 1.0, rel_tol=1e-5)


@pytest.mark.parametrize("labels", [[1, 1], [0, 1]])
def test_gradient_equals_finite_differences(interpreter, labels):
    """Also with a blank among the labels, where the gradient of torch's loss on the CPU is wrong in the last frame."""
    logits, _, frame_lengths, label_lengths = random_case(batch=1, frames=3, vocabulary=3, labels=2)
    labels = torch.tensor([labels])
    _, gradient = interpreter(kernel_losses, logits, labels, frame_lengths, label_lengths)
    steps = 0.02 * torch.eye(logits.numel()).view(-1, *logits.shape[1:])
    moved = torch.cat([logits + steps, logits - steps])
    count = len(moved)
    losses, _ = interpreter(
        kernel_losses, moved, labels.repeat(count, 1), frame_lengths.repeat(count), label_lengths.repeat(count)
    )
    upper, lower = losses.chunk(2)
    torch.testing.assert_close((upper - lower) / 0.04, gradient.flatten(), rtol=1e-3, atol=5e-4)


# Layouts, padding, dtypes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["frames first", "vocabulary first", "slice", "expanded"])
def test_logits_may_have_any_strides(interpreter, layout):
    logits, *rest = random_case()
    strided = {
        "frames first": lambda: logits.transpose(0, 1).contiguous().transpose(0, 1),
        "vocabulary first": lambda: logits.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        "slice": lambda: (
            torch.randn(4, 20, 15)
            .index_copy_(2, torch.arange(6) * 2 + 1, torch.zeros(4, 20, 6))[::2, 1:8, 1:13:2]
            .copy_(logits)
        ),
        "expanded": lambda: logits[:1].expand(2, -1, -1),
    }[layout]()
    assert not strided.is_contiguous()
    losses, gradient = interpreter(kernel_losses, strided, *rest)
    expected, expected_gradient = interpreter(kernel_losses, strided.contiguous(), *rest)
    assert torch.equal(losses, expected)
    assert torch.equal(gradient, expected_gradient)


def test_padding_and_neighbors_change_nothing(interpreter):
    """Padded frames may be NaN, and padded labels may be anything."""
    logits, labels, _, _ = random_case(batch=3, frames=12, labels=20)
    frame_lengths, label_lengths = torch.tensor([12, 5, 8]), torch.tensor([3, 2, 4])
    for row, (frames, count) in enumerate(zip(frame_lengths, label_lengths, strict=True)):
        logits[row, frames:] = math.nan
        labels[row, count:] = torch.tensor([-100, 10**12])[row % 2]
    losses, gradient = interpreter(kernel_losses, logits, labels, frame_lengths, label_lengths)
    for row, (frames, count) in enumerate(zip(frame_lengths, label_lengths, strict=True)):
        alone = (logits[row : row + 1, :frames], labels[row : row + 1, :count], frames[None], count[None])
        loss, own_gradient = interpreter(kernel_losses, *alone)
        torch.testing.assert_close(losses[row], loss[0], rtol=1e-6, atol=0)
        torch.testing.assert_close(gradient[row, :frames], own_gradient[0], rtol=1e-5, atol=1e-7)
        assert torch.equal(gradient[row, frames:], torch.zeros(12 - int(frames), 6))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_and_written_and_computed_in_float32(interpreter, dtype):
    logits, *rest = random_case(frames=12)
    logits = logits.to(dtype)
    losses, gradient = interpreter(kernel_losses, logits, *rest)
    expected, expected_gradient = interpreter(kernel_losses, logits.float(), *rest)
    assert (losses.dtype, gradient.dtype) == (torch.float32, dtype)
    assert torch.equal(losses, expected)
    # The interpreter cuts the last digit of bfloat16, and rounds that of float16.
    torch.testing.assert_close(gradient.float(), expected_gradient, rtol=torch.finfo(dtype).eps, atol=0)


def test_labels_and_lengths_may_be_int32(interpreter):
    logits, *rest = random_case()
    losses, _ = interpreter(kernel_losses, logits, *(tensor.int() for tensor in rest))
    assert torch.equal(losses, interpreter(kernel_losses, logits, *rest)[0])


# Bad values ------------------------------------------------------------------------------------------------------


def test_impossible_labels_cost_nothing_and_unused_ones_change_nothing(interpreter):
    """A logit of minus infinity: for a label of the text, and for another label."""
    logits, labels, *rest = random_case()
    labels[:] = torch.tensor([1, 2, 3])
    logits[0, :, 2] = logits[1, :, 5] = -math.inf
    losses, gradient = interpreter(kernel_losses, logits, labels, *rest)
    assert losses[0] == 0
    assert not gradient[0].any()
    expected, expected_gradient = torch_losses(logits[1:, :, :5], labels[1:], rest[0][1:], rest[1][1:])
    torch.testing.assert_close(losses[1:].double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient[1:, :, :5].double(), expected_gradient, rtol=1e-4, atol=1e-6)
    assert not gradient[1, :, 5].any()


@pytest.mark.parametrize("fault", ["nan", "inf", "frames", "labels", "negative frames", "label", "negative label"])
def test_faults_give_nan_for_their_utterance_only(interpreter, fault):
    logits, labels, frame_lengths, label_lengths = random_case(batch=2, frames=8)
    expected = interpreter(kernel_losses, logits, labels, frame_lengths, label_lengths)
    if fault in ("nan", "inf"):
        logits[0, 3, 1] = float(fault)
    elif fault.endswith("frames"):
        frame_lengths[0] = -1 if fault.startswith("negative") else 9
    elif fault == "labels":
        label_lengths[0] = 4
    else:
        labels[0, 1] = -1 if fault.startswith("negative") else 6
    losses, gradient = interpreter(kernel_losses, logits, labels, frame_lengths, label_lengths)
    assert losses[0].isnan()
    # No frame counts if their number is negative.
    assert gradient[0].isnan().any() or fault == "negative frames"
    assert torch.equal(losses[1], expected[0][1])
    assert torch.equal(gradient[1], expected[1][1])


# Autograd and the host -------------------------------------------------------------------------------------------


def test_the_host_never_waits(interpreter):
    case = random_case()
    assert torch.equal(interpreter(kernel_losses, *case, guarded=True)[1], interpreter(kernel_losses, *case)[1])


@pytest.mark.parametrize("wait", ["item", "tolist", "cpu", "nonzero", "__bool__", "__int__"])
def test_the_guard_finds_waits(wait):
    with pytest.raises(AssertionError, match="waits for the GPU"), no_waits():
        getattr(torch.tensor(1), wait)()


def test_losses_do_not_depend_on_whether_a_gradient_follows(interpreter):
    logits, *rest = random_case()
    for losses in interpreter(losses_without_gradient, logits, *rest):
        assert torch.equal(losses, interpreter(kernel_losses, logits, *rest)[0])


def test_second_derivatives_are_refused(interpreter):
    assert "no second derivative" in interpreter(second_derivative, *random_case())


# Where the kernel is used ----------------------------------------------------------------------------------------


def test_loss_of_the_modules_is_the_same_with_and_without_kernel(interpreter):
    logits, labels, frame_lengths, label_lengths = random_case(batch=3)
    label_lengths = torch.tensor([3, 0, 2])
    inputs = (logits, frame_lengths, labels, label_lengths)
    losses, gradient = interpreter(losses_per_label, *inputs, kernel=True)
    expected, expected_gradient = interpreter(losses_per_label, *inputs, kernel=False)
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


def test_check_at_first_use_finds_a_wrong_kernel(interpreter):
    assert interpreter(agreements) == [True, False]


@pytest.fixture
def has_kernel():
    ctc_loss.has_kernel.cache_clear()
    yield ctc_loss.has_kernel
    ctc_loss.has_kernel.cache_clear()


def test_kernel_is_used_on_gpus_where_it_agrees_with_torch(has_kernel, monkeypatch):
    assert not has_kernel(torch.device("cpu"))
    monkeypatch.setattr(ctc_loss, "kernel_agrees", lambda device: True)
    assert has_kernel(torch.device("cuda", 0))


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda device: False, r"does not run on cuda:0 \(its results differ from those of torch\). torch's loss is"),
        (lambda device: {}["cc"], r"does not run on cuda:0 \(KeyError: 'cc'\)"),
    ],
)
def test_torch_is_used_with_one_warning_where_the_kernel_fails(has_kernel, monkeypatch, check, message):
    monkeypatch.setattr(ctc_loss, "kernel_agrees", check)
    with pytest.warns(Notice, match=message) as seen:
        assert [has_kernel(torch.device("cuda", 0)) for _ in range(2)] == [False, False]
    assert len(seen) == 1


def test_torch_is_used_without_triton(has_kernel, monkeypatch):
    monkeypatch.setattr(triton_kernels, "find_spec", lambda name: None)
    assert not has_kernel(torch.device("cuda", 0))


# Compiled --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ({"batch": 4, "frames": 50, "vocabulary": 32, "labels": 200}, torch.bfloat16),
        ({"batch": 2, "frames": 30, "vocabulary": 50_257, "labels": 1023, "blank": 1}, torch.float32),
        # Sizes and strides of 1 become constants.
        ({"batch": 1, "frames": 1, "vocabulary": 2, "labels": 1, "blank": 1}, torch.float16),
        ({"batch": 1, "frames": 3, "vocabulary": 2, "labels": 0}, torch.bfloat16),
    ],
    ids=str,
)
def test_kernels_compile_for_a_gpu(compiled, shape, dtype):
    """By Triton's own compiler, which needs no GPU."""
    from ssl_asr.training import ctc_kernel

    logits, *rest = random_case(**shape)
    logits = logits[..., :1] if shape["labels"] == 0 else logits
    blank = shape.get("blank", 0)
    ctc_kernel.ctc_loss(logits.to(dtype), *rest, blank=blank)
    ctc_kernel.ctc_loss(logits.to(dtype).requires_grad_(), *rest, blank=blank).sum().backward()
    assert compiled.names == ["normalizer", "lattice", "normalizer", "lattice", "softmax", "occupancy"]
    compiled.check()
