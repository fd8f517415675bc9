"""Teacher forcing of the GRU decoder equals a loop over its decoding step, gradients included."""

import pytest
import torch

from ssl_asr.models.attention import GruDecoder

FRAMES = torch.tensor([9, 4, 6])


def decoder(layers=1, dropout=0.0, kernel=2):
    torch.manual_seed(0)
    return GruDecoder(
        dim=5,
        vocab_size=7,
        embedding=6,
        width=8,
        layers=layers,
        dropout=dropout,
        attention_width=10,
        channels=3,
        kernel=kernel,
    )


def loop(made, tokens, h, frames):
    """The decoding step on each token in turn, without the output layer."""
    state = made.begin(h, frames, tokens.shape[1])
    return torch.stack([made._next(x, state) for x in made.embed(tokens).unbind(1)], dim=1)


def results(run, made, tokens, h, frames):
    made.zero_grad()
    h = h.clone().requires_grad_()
    states = run(made, tokens, h, frames)
    generator = torch.Generator().manual_seed(1)
    (made.logits(states) * torch.randn(*tokens.shape, 7, generator=generator)).sum().backward()
    return {"states": states, "h": h.grad, **{name: one.grad for name, one in made.named_parameters()}}


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kernel", [0, 2, 12])
@pytest.mark.parametrize("frames", [[9, 4, 6], [9, 9, 9], [9, 1, 2]])
def test_states_and_gradients_equal_those_of_the_loop(layers, kernel, frames):
    made, frames = decoder(layers, kernel=kernel).double(), torch.tensor(frames)
    # Small weights would hide an error in the recurrence.
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=0.7)
    tokens, h = torch.randint(7, (3, 11)), torch.randn(3, 9, 5, dtype=torch.float64)
    expected, got = results(loop, made, tokens, h, frames), results(GruDecoder.forward, made, tokens, h, frames)
    for name, tensor in expected.items():
        assert tensor.abs().max() > 1e-4, name
        torch.testing.assert_close(got[name], tensor, atol=1e-11, rtol=1e-9, msg=lambda text, name=name: name + text)


def test_one_token_and_frozen_encoder_states():
    made, tokens, h = decoder().double(), torch.randint(7, (3, 1)), torch.randn(3, 9, 5, dtype=torch.float64)
    torch.testing.assert_close(made(tokens, h, FRAMES), loop(made, tokens, h, FRAMES))
    made(tokens, h, FRAMES).sum().backward()
    assert h.grad is None
    assert made.attention.keys.weight.grad is not None


def test_backward_twice_gives_the_same_gradients():
    made, tokens, h = decoder(2), torch.randint(7, (3, 5)), torch.randn(3, 9, 5)
    loss = made(tokens, h, FRAMES).square().sum()
    first, second = (torch.autograd.grad(loss, list(made.gru.parameters()), retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_second_derivatives_are_refused():
    made, h = decoder(), torch.randn(3, 9, 5, requires_grad=True)
    loss = made(torch.randint(7, (3, 5)), h, FRAMES).square().sum()
    [grad] = torch.autograd.grad(loss, h, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("precision", ["autocast", "true"])
def test_bfloat16_is_within_its_rounding_of_float32(precision):
    made, tokens, h = decoder(2), torch.randint(7, (3, 6)), torch.randn(3, 9, 5)
    expected = results(GruDecoder.forward, made, tokens, h, FRAMES)
    if precision == "true":
        made, h = made.bfloat16(), h.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "autocast"):
        got = results(GruDecoder.forward, made, tokens, h, FRAMES)
    for name, tensor in expected.items():
        error = (got[name].float() - tensor).norm() / tensor.norm()
        assert error < 0.03, name


def test_dropout_changes_states_in_training_only_and_has_the_right_mean():
    made, h = decoder(2, dropout=0.3), torch.randn(1, 9, 5)
    tokens, frames = torch.randint(7, (1, 4)), FRAMES[:1]
    made.eval()
    assert torch.equal(made(tokens, h, frames), made(tokens, h, frames))
    assert torch.allclose(made(tokens, h, frames), loop(made, tokens, h, frames), atol=1e-6)
    made.train()
    # Only the first layer's output is dropped: with zero weights of the second layer's inputs nothing changes.
    made.dropout.p = 0.0
    with torch.no_grad():
        first = made(tokens, h, frames)
        assert not torch.equal(first, made(tokens, h, frames))
        made.gru.weight_ih_l1.zero_()
        assert torch.equal(made(tokens, h, frames), made(tokens, h, frames))
    layers = made._layers(torch.zeros(100, 10, 6), torch.float32)
    assert layers[0].dropout_UBD is None
    assert set(layers[1].dropout_UBD.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.7))}
    assert float(layers[1].dropout_UBD.mean()) == pytest.approx(1.0, abs=0.05)


def test_memory_of_the_backward_pass_does_not_hold_hidden_units_of_each_token():
    """The loop holds (frames, attention width) values per token, the recurrence only (frames,)."""

    def kept(run, tokens):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda one: sizes.append(one.numel()) or one, lambda one: one):
            run(made, torch.randint(7, (2, tokens)), h, torch.tensor([50, 40]))
        return sum(sizes)

    made, h = decoder(), torch.randn(2, 50, 5)
    per_token = (kept(GruDecoder.forward, 30) - kept(GruDecoder.forward, 10)) / 20
    assert per_token < 50 * 2 * 10
    assert (kept(loop, 30) - kept(loop, 10)) / 20 > 50 * 2 * 10
