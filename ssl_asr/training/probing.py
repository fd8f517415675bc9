"""Passes over made-up batches before training, which leave a model as it was: to count operations and memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from ssl_asr.data.dataset import collate
from ssl_asr.training.checkpointing import random_state, restore_random_state
from ssl_asr.training.module import ASRModule
from ssl_asr.types import SAMPLE_RATE, Batch, Example, Seconds, Utterance


def silent_batch(module: ASRModule, utterance: Utterance, seconds: Sequence[Seconds], tokens: Sequence[int]) -> Batch:
    """A batch of silence on the model's device.

    Args:
        module: The model.
        utterance: Any utterance of the training data. Its tokens are repeated.
        seconds: Duration of each row.
        tokens: Number of target tokens of each row.
    """
    own = module.tokenizer.encode(utterance)
    rows = []
    for duration, count in zip(seconds, tokens, strict=True):
        spoken = replace(utterance, duration=duration, weight=1.0)
        repeated = (own * (count // len(own) + 1))[:count]
        rows.append(Example(spoken, torch.zeros(round(duration * SAMPLE_RATE)), repeated))
    return collate(rows).to(module.device)


@contextmanager
def probing(module: ASRModule) -> Iterator[None]:
    """In this context, forward and backward passes leave no trace.

    The model starts without gradients. At the end, also after an error, its gradients, buffers and mode, and all random
    states, are those from before. Nothing is logged.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    gradients, was_training = [parameter.grad for parameter in trained], module.training
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    for parameter in trained:
        parameter.grad = None
    with unlogged(module), torch.cuda.device(module.device) if module.device.type == "cuda" else nullcontext():
        random = random_state()
        try:
            yield
        finally:
            restore_random_state(random)
            module.train(was_training)
            for buffer, value in buffers:
                buffer.copy_(value)
            for parameter, gradient in zip(trained, gradients, strict=True):
                parameter.grad = gradient


@contextmanager
def unlogged(module: ASRModule) -> Iterator[None]:
    """In this context, the loss logs nothing. Lightning warns of a loss that logs outside of a training step."""
    module.log_train = _no_log  # type: ignore[method-assign]
    try:
        yield
    finally:
        del module.log_train


def _no_log(name: str, value: Tensor, batch_size: int) -> None:
    """In place of `ASRModule.log_train`."""
