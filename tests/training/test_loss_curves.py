"""Fifty updates by our forward passes and by those of transformers: equal losses in float32, close ones in bfloat16.

Dropout is off, because both draw their masks in another order. The CTC loss is computed in float64 on both sides: in
float32, gradients of torch's loss are off by up to a thousandth, for any forward pass.
"""

import functools
import random

import pytest
import torch

from ssl_asr.training.masters import MasterWeights
from ssl_asr.types import SAMPLE_RATE
from tests.training.toy_runs import build, toy_overrides

UPDATES, ROWS, PER_EPOCH = 50, 2, 5
TASKS = {"wav2vec2_group": "ctc", "wavlm_layer": "ctc", "whisper": "seq2seq"}
RATES = {"ctc": 5e-4, "seq2seq": 2e-3}
NO_RANDOM_CHOICES = ["freeze=false", "augment=none", "backbone.layerdrop=0"]


def batches_of(run, *, seed):
    """Batches of shuffled training utterances. No utterance is repeated within an epoch."""
    rng, order = random.Random(seed), []
    count = len(run.data.train_kept) // ROWS * ROWS
    while len(order) < UPDATES * ROWS:
        order += rng.sample(range(count), count)
    return [run.data.train_batch(order[start : start + ROWS]) for start in range(0, UPDATES * ROWS, ROWS)]


def _curve(module, mean_loss, batches, lr, masters=None):
    """The mean loss of each batch before its update."""
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    held = MasterWeights(module, [optimizer]) if masters else None
    losses = []
    for batch in batches:
        loss = mean_loss(batch)
        loss.backward()
        if held is not None:
            held.take_gradients()
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
        if held is not None:
            held.round()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return torch.tensor(losses)


def our_curve(run, batches, *, lr, precision="32-true"):
    """Losses of our module."""
    module = run.module.train()

    def mean_loss(batch):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = module.loss(batch)
        return loss.total / loss.count

    return _curve(module, mean_loss, batches, lr, masters=precision == "bf16-true")


def their_curve(run, batches, *, lr):
    """Losses of the class of transformers with the same weights. Rows are computed one by one."""
    # In training mode, transformers would mask and drop layers.
    model = run.module.transformers_model().eval()
    mean_loss = _seq2seq_loss if run.module.task_name == "seq2seq" else _ctc_loss
    return _curve(model, functools.partial(mean_loss, run.module, model), batches, lr)


def _rows(module, batch):
    """What transformers' feature extractor makes of each waveform without padding."""
    extractor = module.speech_encoder.feature_extractor()
    for waveform_T, length in zip(batch.waveform_BT, batch.lengths_B.tolist(), strict=True):
        made = extractor(waveform_T[:length].numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        yield made[extractor.model_input_names[0]]


def _ctc_loss(module, model, batch):
    model.config.update({"ctc_loss_reduction": "mean"})
    tokens = [row_U[:length][None] for row_U, length in zip(batch.tokens_BU, batch.token_lengths_B, strict=True)]
    losses = [model(row, labels=labels).loss for row, labels in zip(_rows(module, batch), tokens, strict=True)]
    return torch.stack(losses).mean()


def _seq2seq_loss(module, model, batch):
    prompts = torch.tensor([module.tokenizer.prompt(utterance) for utterance in batch.utterances])
    tokens_BU = torch.cat([prompts, batch.tokens_BU], dim=1)
    labels_BU = tokens_BU[:, 1:].clone()
    first = prompts.shape[1] - 1
    for labels_U, length in zip(labels_BU, batch.token_lengths_B.tolist(), strict=True):
        labels_U[:first] = labels_U[first + length :] = -100
    features = torch.cat(list(_rows(module, batch)))
    return model(input_features=features, decoder_input_ids=tokens_BU[:, :-1], labels=labels_BU).loss


@pytest.fixture(scope="module")
def curve(toy_checkpoints, toy_corpus, tmp_path_factory):
    """A function that returns the losses of fifty updates of a toy. Tests share them."""
    ctc_loss = torch.nn.functional.ctc_loss
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "dropout", lambda x, *_, **__: x)
        patch.setattr(torch.nn.Dropout, "forward", lambda self, x: x)
        patch.setattr(torch.nn.functional, "ctc_loss", lambda x, *given, **named: ctc_loss(x.double(), *given, **named))

        @functools.cache
        def made(name, of, *, seed=0, **more):
            task = TASKS[name]
            overrides = [*toy_overrides(toy_checkpoints[name], toy_corpus, task), *NO_RANDOM_CHOICES]
            overrides += ["backbone.window=30s"] if name == "whisper" else []
            run = build(tmp_path_factory.mktemp(name), *overrides, f"seed={seed}")
            return of(run, batches_of(run, seed=seed), lr=RATES[task], **more)

        yield made


def _of_epochs(losses):
    """Mean loss of each epoch, which has all utterances."""
    return losses.view(-1, PER_EPOCH).mean(1)


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_losses_of_fifty_updates_equal_those_of_transformers(curve, name):
    """To 1e-4 of the loss: a label of a CTC toy has some hundred frames."""
    ours, theirs = curve(name, our_curve), curve(name, their_curve)
    torch.testing.assert_close(ours, theirs, atol=0, rtol=1e-4)
    means = _of_epochs(ours)
    assert means[-1] < 0.9 * means[0], "the model learns, so its weights have changed"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("name", TASKS)
def test_losses_in_bfloat16_are_closer_than_those_of_another_seed(curve, name, precision):
    """The seed changes the new weights and the order of the utterances."""
    single, another = _of_epochs(curve(name, our_curve)), _of_epochs(curve(name, our_curve, seed=1))
    half = _of_epochs(curve(name, our_curve, precision=precision))
    assert (half - single).abs().max() < (another - single).abs().max()
