"""Joint heads: padding has no effect, stepwise decoding equals teacher forcing, CTC layer and decoder both learn."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from ssl_asr.decoding.ctc import collapse, greedy_paths
from ssl_asr.decoding.greedy import greedy_decode
from ssl_asr.decoding.step_model import Constraints
from ssl_asr.models.attention import GruAttentionHead, LocationAttention, TransformerAttentionHead, attention_loss

DENSE = {"blocks": 1, "width": 8, "norm": "layer", "activation": "gelu", "dropout": 0.1}
HEADS = {
    "gru": GruAttentionHead(
        **DENSE,
        embedding=6,
        decoder_width=10,
        decoder_layers=2,
        decoder_dropout=0.1,
        attention_width=7,
        channels=3,
        kernel=2,
    ),
    "transformer": TransformerAttentionHead(
        **DENSE, decoder_layers=2, heads=2, feed_forward=16, decoder_dropout=0.1, max_tokens=12
    ),
}
FRAMES = torch.tensor([9, 4, 6])
each_head = pytest.mark.parametrize("name", HEADS)


def made(name, dim=5, vocab=7):
    torch.manual_seed(0)
    return HEADS[name].build(dim=dim, vocab_size=vocab).eval()


@each_head
def test_other_utterances_do_not_change_ctc_or_decoder(name):
    head, h = made(name), torch.randn(3, 9, 5)
    tokens = torch.randint(7, (3, 4))
    trunk = head.trunk(h, FRAMES)
    together = head.decoder.logits(head.decoder(tokens, trunk, FRAMES))
    ctc = head(h, FRAMES)
    for row, frames in enumerate(FRAMES.tolist()):
        own, lengths = h[row : row + 1, :frames], FRAMES[row : row + 1]
        alone = head.decoder.logits(head.decoder(tokens[row : row + 1], head.trunk(own, lengths), lengths))
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ctc[row, :frames], head(own, lengths)[0], atol=1e-5, rtol=1e-4)


@each_head
def test_stepwise_decoding_equals_teacher_forcing_after_rows_are_removed(name):
    head = made(name)
    h, tokens = head.trunk(torch.randn(3, 9, 5), FRAMES), torch.randint(7, (3, 5))
    whole = head.decoder.logits(head.decoder(tokens, h, FRAMES))
    state, rows = head.decoder.begin(h, FRAMES, 5), torch.arange(3)
    for place in range(5):
        if place == 2:
            rows = torch.tensor([2, 0])
            state.keep(rows)
        logits = head.decoder.step(tokens[rows, place : place + 1], state)
        torch.testing.assert_close(logits, whole[rows, place], atol=1e-5, rtol=1e-4)


def test_location_attention_equals_its_equations():
    torch.manual_seed(0)
    attention = LocationAttention(dim=4, query_dim=3, width=5, channels=2, kernel=1)
    h, query, last = torch.randn(4, 4), torch.randn(3), torch.tensor([0.1, 0.6, 0.3, 0.0])
    energies = []
    for frame in range(3):
        around = [float(last[i]) if 0 <= i < 4 else 0.0 for i in (frame - 1, frame, frame + 1)]
        where = attention.where.weight[:, 0] @ torch.tensor(around)
        hidden = torch.tanh(attention.keys(h[frame]) + attention.query(query) + attention.location(where))
        energies.append(attention.energy(hidden)[0])
    weights = torch.stack(energies).softmax(0)
    mask = torch.tensor([[True, True, True, False]])
    context, seen = attention(attention.keys(h)[None], h[None], mask, query[None], last[None])
    torch.testing.assert_close(seen[0], torch.cat([weights, torch.zeros(1)]), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(context[0], weights @ h[:3], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_attention_loss_is_the_mean_over_each_utterance(smoothing):
    logits, targets, lengths = torch.randn(3, 5, 7), torch.randint(7, (3, 5)), torch.tensor([5, 1, 3])
    losses = attention_loss(logits, targets, lengths, label_smoothing=smoothing)
    for row, length in enumerate(lengths.tolist()):
        own = functional.cross_entropy(logits[row, :length], targets[row, :length], label_smoothing=smoothing)
        assert float(losses[row]) == pytest.approx(float(own), abs=1e-6)


@each_head
def test_greedy_search_takes_the_argmax_and_stops_at_the_limit(name):
    head = made(name)
    h = head.trunk(torch.randn(3, 9, 5), FRAMES)
    constraints = Constraints(end_id=0, limits=[8, 3, 6])
    found = greedy_decode(head.decoder, h, FRAMES, [[0]] * 3, constraints=constraints)
    for row, (frames, limit) in enumerate(zip(FRAMES.tolist(), [8, 3, 6], strict=True)):
        tokens = [0]
        while len(tokens) <= limit:
            own = head.decoder(torch.tensor([tokens]), h[row : row + 1, :frames], FRAMES[row : row + 1])
            best = int(head.decoder.logits(own)[0, -1].argmax())
            if best == 0:
                break
            tokens.append(best)
        assert found[row].tokens == tokens[1:]


@each_head
def test_ctc_layer_and_decoder_learn_to_transcribe(name):
    """Each token has four frames that encode the token and its position. Test texts are not in the training data."""
    torch.manual_seed(0)
    head = replace(HEADS[name], width=16).build(dim=12, vocab_size=7)
    optimizer = torch.optim.Adam(head.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)

    def batch(size):
        # No repeated tokens: CTC would need a blank in between.
        tokens = torch.randint(1, 6, (size, 5), generator=generator).cumsum(1) % 6 + 1
        places = torch.arange(5).repeat_interleave(4).expand(size, 20)
        h = torch.cat(
            [functional.one_hot(tokens.repeat_interleave(4, 1), 7), functional.one_hot(places, 5)], -1
        ).float()
        return tokens, h + 0.1 * torch.randn(h.shape, generator=generator), torch.full((size,), 20)

    zeros = torch.zeros(32, 1, dtype=torch.int64)
    for _ in range(300):
        tokens, h, frames = batch(32)
        trunk = head.trunk(h, frames)
        states = head.decoder(torch.cat([zeros, tokens], 1), trunk, frames)
        attention = attention_loss(
            head.decoder.logits(states), torch.cat([tokens, zeros], 1), torch.full((32,), 6), label_smoothing=0.0
        )
        log_probs = head.ctc(trunk).log_softmax(-1).transpose(0, 1)
        ctc = functional.ctc_loss(log_probs, tokens, frames, torch.full((32,), 5))
        optimizer.zero_grad()
        (attention.mean() + ctc).backward()
        optimizer.step()
    head.eval()
    tokens, h, frames = batch(20)
    constraints = Constraints(end_id=0, limits=[9] * 20)
    decoded = greedy_decode(head.decoder, head.trunk(h, frames), frames, [[0]] * 20, constraints=constraints)
    right = sum(row.tokens == own for row, own in zip(decoded, tokens.tolist(), strict=True))
    paths, _ = greedy_paths(head(h, frames).log_softmax(-1), frames)
    aligned = sum(collapse(path, 0) == own for path, own in zip(paths, tokens.tolist(), strict=True))
    assert right >= 18
    assert aligned >= 18
