"""Attention with biases of distances against its definition, and what it keeps for backward."""

import pytest
import torch

from ssl_asr.models import relative_attention as own
from ssl_asr.models.relative_attention import (
    distance_attention,
    gather_distances,
    relative_attention,
    spread,
    sums_by_distance,
)

BATCH, HEADS, FRAMES, DIM = 3, 2, 7, 4
MASK_BT = torch.arange(FRAMES)[None] < torch.tensor([7, 4, 5])[:, None]


def random_inputs():
    torch.manual_seed(0)
    sizes = [(BATCH, HEADS, FRAMES, DIM)] * 3 + [(BATCH, HEADS, FRAMES), (HEADS, 2 * FRAMES - 1)]
    return [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes]


def _attention(q, k, v, bias_of, mask):
    """By the definition. ``bias_of(i, j)`` is the bias of a query and a key, shape (batch, heads)."""
    scores = q @ k.transpose(2, 3) / DIM**0.5
    for i in range(FRAMES):
        for j in range(FRAMES):
            bias = torch.zeros_like(scores)
            bias[:, :, i, j] = 1.0
            scores = scores + bias * bias_of(i, j)[..., None, None]
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    return scores.softmax(-1) @ v


def by_definition(q, k, v, gate, relative, mask):
    return _attention(q, k, v, lambda i, j: gate[:, :, i] * relative[:, j - i + FRAMES - 1], mask)


# The farthest distances to the left and the right: near ones, none, and more than there are.
FARTHEST = [(3, 2), (0, 0), (2, 0), (FRAMES - 1, FRAMES - 1), (FRAMES + 2, 1)]


def random_scores(left, right):
    states = random_inputs()[:3]
    return [*states, torch.randn(BATCH, HEADS, FRAMES, left + 1 + right, dtype=torch.float64, requires_grad=True)]


@pytest.mark.parametrize("largest", [1, 1 << 24])
@pytest.mark.parametrize("mask", [None, MASK_BT])
@pytest.mark.parametrize(("left", "right"), FARTHEST)
def test_bias_of_each_distance_equals_the_definition(monkeypatch, mask, largest, left, right):
    monkeypatch.setattr(own, "_MAX_TABLE", largest)
    *states, scores = inputs = random_scores(left, right)
    expected = _attention(*states, lambda i, j: scores[:, :, i, min(max(j - i, -left), right) + left], mask)
    out = distance_attention(*inputs, left, right, mask_BT=mask)
    torch.testing.assert_close(out, expected)
    with torch.no_grad():
        torch.testing.assert_close(distance_attention(*inputs, left, right, mask_BT=mask), expected)
    factors = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad((one * factors).sum(), inputs) for one in (out, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_of_the_bias_of_each_distance_with_dropout():
    def seeded(*inputs):
        torch.manual_seed(3)
        return distance_attention(*inputs, 3, 2, mask_BT=MASK_BT, dropout=0.4)

    assert torch.autograd.gradcheck(seeded, random_scores(3, 2))


@pytest.mark.parametrize(("left", "right"), FARTHEST)
def test_sums_by_distance(left, right):
    table = torch.randn(BATCH, HEADS, FRAMES, FRAMES, dtype=torch.float64)
    expected = torch.zeros(BATCH, HEADS, FRAMES, left + 1 + right, dtype=torch.float64)
    for i in range(FRAMES):
        for j in range(FRAMES):
            expected[..., i, min(max(j - i, -left), right) + left] += table[..., i, j]
    torch.testing.assert_close(sums_by_distance(table, left, right), expected)


@pytest.mark.parametrize("largest", [1, HEADS * FRAMES * FRAMES * 2, 1 << 24])
@pytest.mark.parametrize("mask", [None, MASK_BT])
def test_output_and_gradients_equal_the_definition(monkeypatch, mask, largest):
    monkeypatch.setattr(own, "_MAX_TABLE", largest)
    inputs = random_inputs()
    expected = by_definition(*inputs, mask)
    out = relative_attention(*inputs, mask_BT=mask)
    torch.testing.assert_close(out, expected)
    with torch.no_grad():
        torch.testing.assert_close(relative_attention(*inputs, mask_BT=mask), expected)
    factors = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad((one * factors).sum(), inputs) for one in (out, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("largest", [1, 1 << 24])
def test_gradients_with_dropout_are_those_of_the_same_dropped_weights(monkeypatch, largest):
    monkeypatch.setattr(own, "_MAX_TABLE", largest)

    def seeded(*inputs):
        torch.manual_seed(3)
        return relative_attention(*inputs, mask_BT=MASK_BT, dropout=0.4)

    assert torch.autograd.gradcheck(seeded, random_inputs())


def test_dropout_keeps_the_expected_output():
    inputs = random_inputs()
    mean = torch.stack([relative_attention(*inputs, dropout=0.3).detach() for _ in range(4000)]).mean(0)
    assert (mean - relative_attention(*inputs)).abs().max() < 0.1
    assert not torch.equal(relative_attention(*inputs, dropout=0.3), relative_attention(*inputs, dropout=0.3))


def test_dropout_needs_no_gradient():
    """Adapters may train in a layer whose attention is frozen, and train mode may run without gradients."""
    frozen = [x.detach() for x in random_inputs()]
    outs = []
    for inputs in (frozen, random_inputs()):
        torch.manual_seed(3)
        outs.append(relative_attention(*inputs, dropout=0.3))
    torch.testing.assert_close(*outs)
    assert [out.requires_grad for out in outs] == [False, True]


def test_no_table_of_pairs_is_kept_for_backward():
    sizes = [(2, 2, 300, 8)] * 3 + [(2, 2, 300), (2, 599)]
    inputs = [torch.randn(size, requires_grad=True) for size in sizes]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        relative_attention(*inputs, dropout=0.1)
    assert sum(kept) < 300 * 300


def test_sums_over_distances_are_the_transpose_of_spreading():
    relative = torch.randn(HEADS, 2 * FRAMES - 1, dtype=torch.float64, requires_grad=True)
    table = torch.randn(HEADS, FRAMES, FRAMES, dtype=torch.float64)
    [expected] = torch.autograd.grad((spread(relative, FRAMES) * table).sum(), relative)
    torch.testing.assert_close(gather_distances(table), expected)
