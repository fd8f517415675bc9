"""Layouts of ragged batches: no padding is computed, and attention equals that of each utterance alone."""

import pytest
import torch

from ssl_asr.models.position_bias import DistanceBias, GatedBias
from ssl_asr.models.ragged import Dense, Packed, frames_of

LENGTHS = [5, 9, 3, 9, 1]
WIDTH, HEADS, DIM = 9, 2, 8


def packed():
    return Packed.of(torch.tensor(LENGTHS), WIDTH, torch.device("cpu"))


def test_packing_removes_the_padding_and_keeps_the_order():
    h_BFD = torch.randn(len(LENGTHS), WIDTH, DIM)
    rows = packed().enter(h_BFD)
    torch.testing.assert_close(rows, torch.cat([row[:n] for row, n in zip(h_BFD, LENGTHS, strict=True)]))
    back = packed().leave(rows)
    for row, own, n in zip(back, h_BFD, LENGTHS, strict=True):
        assert torch.equal(row[:n], own[:n])
        assert not row[n:].any()


LEFT, RIGHT = 3, 1


def _inputs(kind):
    """States, the bias, and the tensors that the bias depends on."""
    torch.manual_seed(0)

    def random(*size):
        return torch.randn(size, dtype=torch.float64, requires_grad=True)

    total = sum(LENGTHS)
    states = [random(total, DIM) for _ in range(3)]
    if kind == "gated":
        gate, relative = random(total, HEADS), random(HEADS, 2 * WIDTH - 1)
        return states, GatedBias(gate, relative), [gate, relative]
    if kind == "distances":
        scores = random(total, HEADS * (LEFT + 1 + RIGHT))
        return states, DistanceBias(scores, LEFT, RIGHT), [scores]
    return states, None, []


def _bias_of_pairs(kind, tensors, rows, distance):
    """The bias of each pair of frames of an utterance with these rows, shape (heads, frames, frames)."""
    if kind == "gated":
        gate, relative = tensors
        return gate[rows].T[..., None] * relative[:, distance + WIDTH - 1]
    [scores] = tensors
    of_heads = scores[rows].view(len(distance), HEADS, -1).transpose(0, 1)
    return of_heads.gather(-1, (distance.clamp(-LEFT, RIGHT) + LEFT).expand(HEADS, -1, -1))


def _alone(states, kind, tensors):
    """Attention of each utterance in a batch of its own, by matrix products."""
    out, places = [], torch.tensor(LENGTHS).cumsum(0).tolist()
    for end, n in zip(places, LENGTHS, strict=True):
        rows = slice(end - n, end)
        q, k, v = (x[rows].view(n, HEADS, -1).transpose(0, 1) for x in states)
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        if kind is not None:
            distance = torch.arange(n)[None] - torch.arange(n)[:, None]
            scores = scores + _bias_of_pairs(kind, tensors, rows, distance)
        out.append((scores.softmax(-1) @ v).transpose(0, 1).reshape(n, -1))
    return torch.cat(out)


KINDS = [None, "gated", "distances"]


@pytest.mark.parametrize(
    ("way", "kind"),
    [
        *((way, kind) for way in ("attend_in_turn", "attend_padded", "attend") for kind in KINDS),
        ("attend_at_once", None),
    ],
)
def test_every_way_of_attention_equals_each_utterance_alone(way, kind):
    states, bias, tensors = _inputs(kind)
    more = {} if bias is None else {"bias": bias}
    out = getattr(packed(), way)(*states, heads=HEADS, dropout=0.0, **more)
    expected = _alone(states, kind, tensors)
    torch.testing.assert_close(out, expected)
    factors = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad((one * factors).sum(), [*states, *tensors]) for one in (out, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_dense_rows_with_a_mask_equal_packed_rows(kind):
    states, bias, _ = _inputs(kind)
    layout = packed()
    dense = Dense(WIDTH, torch.arange(WIDTH)[None] < torch.tensor(LENGTHS)[:, None])
    own = None if bias is None else bias.moved(layout.leave)
    out = dense.attend(*(layout.leave(x) for x in states), heads=HEADS, dropout=0.0, bias=own)
    torch.testing.assert_close(layout.enter(out), layout.attend(*states, heads=HEADS, dropout=0.0, bias=bias))


@pytest.mark.parametrize("way", ["attend_in_turn", "attend_at_once", "attend_padded"])
def test_dropout_changes_the_output(way):
    states, _, _ = _inputs(None)
    attend = getattr(packed(), way)
    assert not torch.equal(*(attend(*states, heads=HEADS, dropout=0.5) for _ in range(2)))
    assert torch.equal(*(attend(*states, heads=HEADS, dropout=0.0) for _ in range(2)))


def test_layout_is_packed_only_if_there_is_padding():
    device = torch.device("cpu")
    assert frames_of(torch.tensor([4, 4]), 4, device) == Dense(4, None)
    layout = frames_of(torch.tensor([4, 2]), 4, device)
    assert layout.enter(torch.zeros(2, 4, 1)).shape == (6, 1)
