"""Heads: padding and other utterances do not change the logits of an utterance."""

import pytest
import torch
from torch import nn

from ssl_asr.models.heads import BiLstmHead, DnnHead, FrameBatchNorm, LinearHead, PretrainedHead, last_layer

LENGTHS = torch.tensor([7, 3, 5])
HEADS = {
    "linear": LinearHead(dropout=0.5),
    "dnn": DnnHead(blocks=2, width=6, norm="layer", activation="gelu", dropout=0.5),
    "dnn_batch": DnnHead(blocks=2, width=6, norm="batch", activation="relu", dropout=0.5),
    "dnn_none": DnnHead(blocks=2, width=6, norm="none", activation="leaky_relu", dropout=0.0),
    "no_blocks": DnnHead(blocks=0, width=6, norm="layer", activation="leaky_relu", dropout=0.5),
    "bilstm": BiLstmHead(layers=2, width=6, dropout=0.5),
}


@pytest.fixture
def states():
    return torch.randn(3, 7, 4)


@pytest.mark.parametrize("name", HEADS)
def test_other_utterances_do_not_change_logits_in_eval_mode(name, states):
    head = HEADS[name].build(dim=4, vocab_size=5)
    for _ in range(3):
        head.train()(states, LENGTHS)
    head.eval()
    together = head(states, LENGTHS)
    assert together.shape == (3, 7, 5)
    for row, frames in enumerate(LENGTHS.tolist()):
        alone = head(states[row : row + 1, :frames], LENGTHS[row : row + 1])
        torch.testing.assert_close(together[row, :frames], alone[0], atol=1e-5, rtol=1e-4)


def test_blocks_without_norm_are_linear_layers_and_activations(states):
    """SpeechBrain's VanillaNN and its output layer."""
    head = HEADS["dnn_none"].build(dim=4, vocab_size=5)
    vanilla = nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(), nn.Linear(6, 6), nn.LeakyReLU(), nn.Linear(6, 5))
    assert sum(p.numel() for p in head.parameters()) == sum(p.numel() for p in vanilla.parameters())
    vanilla.load_state_dict(dict(zip(vanilla.state_dict(), head.state_dict().values(), strict=True)))
    torch.testing.assert_close(head(states, LENGTHS), vanilla(states))


@pytest.mark.parametrize("name", ["dnn_batch", "bilstm"])
def test_padding_does_not_change_logits_gradients_or_statistics_in_train_mode(name, states):
    results = []
    for filling in (0.0, 1e3):
        torch.manual_seed(0)
        head = HEADS[name].build(dim=4, vocab_size=5).train()
        for module in head.modules():
            if hasattr(module, "dropout") and isinstance(module.dropout, float):
                module.dropout = 0.0
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        filled = states.clone()
        for row, frames in enumerate(LENGTHS.tolist()):
            filled[row, frames:] = filling
        logits = head(filled, LENGTHS)
        sum(logits[row, :frames].square().sum() for row, frames in enumerate(LENGTHS.tolist())).backward()
        kept = [logits[row, :frames].detach() for row, frames in enumerate(LENGTHS.tolist())]
        results.append([*kept, *(p.grad for p in head.parameters()), *(b.float() for b in head.buffers())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_frame_batch_norm_equals_torch_batch_norm_over_valid_frames(states):
    ours, theirs = FrameBatchNorm(4).train(), nn.BatchNorm1d(4).train()
    rows = [states[row, :frames] for row, frames in enumerate(LENGTHS.tolist())]
    for _ in range(3):
        out, expected = ours(states, LENGTHS), theirs(torch.cat(rows))
    got = torch.cat([out[row, :frames] for row, frames in enumerate(LENGTHS.tolist())])
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(states[:1], LENGTHS[:1]), theirs.eval()(states[0])[None])


def test_checkpoint_keys_of_frame_wise_heads():
    linear = LinearHead(dropout=0.5).build(dim=4, vocab_size=5)
    assert list(linear.state_dict()) == ["layers.1.weight", "layers.1.bias"]
    dnn = DnnHead(blocks=1, width=6, norm="layer", activation="gelu", dropout=0.5).build(dim=4, vocab_size=5)
    block = [f"layers.0.{name}" for name in ("linear.weight", "linear.bias", "norm.weight", "norm.bias")]
    assert list(dnn.state_dict()) == [*block, "layers.1.weight", "layers.1.bias"]


def test_last_layer_computes_the_logits(states):
    head = PretrainedHead(dropout=0.0).build(dim=4, vocab_size=5)
    with torch.no_grad():
        last_layer(head).weight.zero_()
    assert torch.equal(head(states, LENGTHS), last_layer(head).bias.expand(3, 7, 5))
