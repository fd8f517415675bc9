"""Layouts of ragged batches: no padding is computed, and attention equals that of each utterance alone."""

import pytest
import torch

from ssl_asr.models.position_bias import GatedBias
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


def _inputs(biased):
    torch.manual_seed(0)
    total = sum(LENGTHS)
    states = [torch.randn(total, DIM, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    if not biased:
        return states, None
    gate = torch.randn(total, HEADS, dtype=torch.float64, requires_grad=True)
    relative = torch.randn(HEADS, 2 * WIDTH - 1, dtype=torch.float64, requires_grad=True)
    return states, GatedBias(gate, relative)


def _alone(states, bias):
    """Attention of each utterance in a batch of its own, by matrix products."""
    out, places = [], torch.tensor(LENGTHS).cumsum(0).tolist()
    for end, n in zip(places, LENGTHS, strict=True):
        q, k, v = (x[end - n : end].view(n, HEADS, -1).transpose(0, 1) for x in states)
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        if bias is not None:
            distance = torch.arange(n)[None] - torch.arange(n)[:, None]
            scores = scores + bias.gate[end - n : end].T[..., None] * bias.relative_HR[:, distance + WIDTH - 1]
        out.append((scores.softmax(-1) @ v).transpose(0, 1).reshape(n, -1))
    return torch.cat(out)


@pytest.mark.parametrize(
    ("way", "biased"),
    [
        *((way, biased) for way in ("attend_in_turn", "attend_padded", "attend") for biased in (False, True)),
        ("attend_at_once", False),
    ],
)
def test_every_way_of_attention_equals_each_utterance_alone(way, biased):
    states, bias = _inputs(biased)
    more = {"bias": bias} if biased else {}
    out = getattr(packed(), way)(*states, heads=HEADS, dropout=0.0, **more)
    expected = _alone(states, bias)
    torch.testing.assert_close(out, expected)
    factors = torch.randn_like(out)
    inputs = states if bias is None else [*states, bias.gate, bias.relative_HR]
    ours, theirs = (torch.autograd.grad((one * factors).sum(), inputs) for one in (out, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("biased", [False, True])
def test_dense_rows_with_a_mask_equal_packed_rows(biased):
    states, bias = _inputs(biased)
    layout = packed()
    dense = Dense(WIDTH, torch.arange(WIDTH)[None] < torch.tensor(LENGTHS)[:, None])
    own = None if bias is None else GatedBias(layout.leave(bias.gate), bias.relative_HR)
    out = dense.attend(*(layout.leave(x) for x in states), heads=HEADS, dropout=0.0, bias=own)
    torch.testing.assert_close(layout.enter(out), layout.attend(*states, heads=HEADS, dropout=0.0, bias=bias))


@pytest.mark.parametrize("way", ["attend_in_turn", "attend_at_once", "attend_padded"])
def test_dropout_changes_the_output(way):
    states, _ = _inputs(False)
    attend = getattr(packed(), way)
    assert not torch.equal(*(attend(*states, heads=HEADS, dropout=0.5) for _ in range(2)))
    assert torch.equal(*(attend(*states, heads=HEADS, dropout=0.0) for _ in range(2)))


def test_layout_is_packed_only_if_there_is_padding():
    device = torch.device("cpu")
    assert frames_of(torch.tensor([4, 4]), 4, device) == Dense(4, None)
    layout = frames_of(torch.tensor([4, 2]), 4, device)
    assert layout.enter(torch.zeros(2, 4, 1)).shape == (6, 1)
