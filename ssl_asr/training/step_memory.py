"""Memory of a training step, extrapolated from short batches.

A batch of ``B`` utterances is padded to ``s`` computed seconds and ``u`` target tokens, and has ``n`` tokens in all. At
a given operation of the step, the tensors that are alive take

    m(B, s, u, n) = a + b s + c s² + B (d + e s + f s² + g u + h u² + i s u) + j n + k r + l q        bytes

since layers are linear in positions and attention is at most quadratic. ``r`` and ``q`` are the sums of the seconds of
the utterances and of their squares, for layers that compute no padding. ``a`` has what does not depend on the batch:
gradients, and copies of weights in another precision. All rows share relative positions, ``b s + c s²``. Steps of all
batches run the same operations, so that each operation has its own twelve coefficients. They are found from the steps
of thirteen short batches:

    operation          1      2      3     …    end of the forward pass      …     last
    2 rows of 2 s     ▁      ▂      ▃                    ▆                          ▂
    2 rows of 4 s     ▂      ▃      ▅                    █                          ▂
    …

The peak of any other batch is the largest ``m`` of all operations. What the backward pass keeps is ``m`` at the end of
the forward pass.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ssl_asr.data.manifest import Manifest
from ssl_asr.data.sampler import TrainBatchSampler
from ssl_asr.models.encoder import LayerGroup
from ssl_asr.training.masters import check_measurable
from ssl_asr.training.memory import LiveMemory
from ssl_asr.training.module import ASRModule
from ssl_asr.training.optimizers import state_bytes
from ssl_asr.training.probing import probing, silent_batch
from ssl_asr.types import SAMPLE_RATE, Batch, Seconds

# Rows, seconds of the longest row and tokens of each measured batch, and the length of its other rows as a share of the
# longest. Convolutions round frames down; at even numbers of seconds, all families round by the same amount.
_MEASURED = [(2, 2, 4, 0.5), (2, 4, 4, 0.5), (2, 6, 4, 0.5), (3, 2, 4, 0.5), (3, 4, 4, 0.5), (3, 6, 4, 0.5)]
_MEASURED += [(2, 2, 16, 0.5), (2, 2, 32, 0.5), (2, 4, 32, 0.5), (3, 2, 32, 0.5)]
_MEASURED += [(2, 2, 4, 0.75), (3, 4, 4, 0.75), (2, 6, 4, 0.75)]
_AT_A_TIME = 256
# Operations that autocast computes in float32 on CUDA, and not on the CPU.
_SINGLE: list[Any] = [functional.layer_norm, functional.group_norm, functional.softmax, functional.log_softmax]
_SINGLE += [torch.softmax, torch.log_softmax, Tensor.softmax, Tensor.log_softmax]
_DROPOUT = (functional.dropout, torch.dropout)

Autocast = Callable[[], AbstractContextManager[None]]
"""Returns the context of a forward pass, as ``forward_context`` of Lightning's precision plugins."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the memory of a batch depends on.

    Attributes:
        rows: Number of utterances.
        computed_s: Seconds that the encoder computes for each row, padding included.
        width: Number of tokens of the longest target.
        tokens: Number of tokens of all targets.
        sum_s: Seconds that the encoder computes for all rows without padding.
        sum_s2: Sum of the squares of these seconds.
    """

    rows: int
    computed_s: Seconds
    width: int
    tokens: int
    sum_s: Seconds
    sum_s2: float

    @classmethod
    def planned(cls, sampler: TrainBatchSampler, tokens_N: NDArray[np.int64]) -> list["Shape"]:
        """The shapes of the batches of a sampler. No audio is read.

        Args:
            sampler: The batches.
            tokens_N: Number of target tokens of each utterance, or of each unit of the sampler.
        """
        return [
            cls._made(sampler.costs_N[batch], int(tokens_N[batch].max()), int(tokens_N[batch].sum()))
            for batch in sampler.batches
        ]

    @classmethod
    def of(cls, module: ASRModule, batch: Batch) -> "Shape":
        """The shape of a batch."""
        computed_s = module.speech_encoder.encoded_s(batch.lengths_B.numpy() / SAMPLE_RATE)
        return cls._made(computed_s, batch.tokens_BU.shape[1], int(batch.token_lengths_B.sum()))

    @classmethod
    def _made(cls, computed_s: NDArray[np.float64], width: int, tokens: int) -> "Shape":
        sums = float(computed_s.sum()), float((computed_s**2).sum())
        return cls(len(computed_s), float(computed_s.max()), width, tokens, *sums)

    def terms(self) -> list[float]:
        """The factors of the twelve coefficients."""
        rows, seconds, width = self.rows, self.computed_s, self.width
        row = [1.0, seconds, seconds**2, width, width**2, seconds * width]
        sums = [self.sum_s, self.sum_s2]
        return [1.0, seconds, seconds**2, *(rows * value for value in row), self.tokens, *sums]


class StepMemory:
    """Memory of the forward and backward pass of batches, on one device.

    Random choices that change the size of a step are made as they cost most: no layer is dropped, and the tail of
    silence of Whisper is the longest one.

    Args:
        module: The model. It is left as it was, see `ssl_asr.training.probing.probing`.
        train: The training data. Nothing is measured that is longer than its longest utterance.
        autocast: The precision of the run.
        as_cuda: Count what CUDA's kernels keep, whatever the device: dropout masks of one byte, attention without a
            matrix of weights, and normalization in float32.
    """

    def __init__(
        self,
        module: ASRModule,
        train: Manifest,
        autocast: Autocast,
        *,
        as_cuda: bool,
    ) -> None:
        check_measurable(bf16_weights=module.optim is not None and module.optim.bf16_weights)
        scale = min(1.0, float(train.durations_N.max()) / max(seconds for _, seconds, *_ in _MEASURED))
        least_s = 2 * module.speech_encoder.min_samples / SAMPLE_RATE
        terms, steps = [], []
        for rows, seconds, tokens, share in _MEASURED:
            lengths_s = [max(least_s, scale * length) for length in (seconds, *[seconds * share] * (rows - 1))]
            batch = silent_batch(module, train[0], lengths_s, [tokens, *[tokens // 2] * (rows - 1)])
            terms.append(Shape.of(module, batch).terms())
            steps.append(step_timeline(module, batch, autocast, as_cuda=as_cuda, computes=False))
        if len({(len(timeline), end) for timeline, end in steps}) > 1:
            # The operations depend on the batch, as those of a recurrent decoder. Two numbers are left of a step.
            steps = [([timeline[end], max(timeline)], 0) for timeline, end in steps]
        timelines_MO = np.array([timeline for timeline, _ in steps], dtype=np.float64)
        self._end = steps[0][1]
        self._coefficients, *_ = np.linalg.lstsq(np.array(terms), timelines_MO, rcond=None)

    def of(self, shapes: Sequence[Shape]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The bytes of each batch and what its backward pass keeps, and those of the peak, gradients included."""
        terms_N = np.array([shape.terms() for shape in shapes])
        parts = [terms_N[i : i + _AT_A_TIME] @ self._coefficients for i in range(0, len(terms_N), _AT_A_TIME)]
        return np.concatenate([part[:, self._end] for part in parts]), np.concatenate([p.max(1) for p in parts])


def step_timeline(
    module: ASRModule,
    batch: Batch,
    autocast: Autocast,
    *,
    as_cuda: bool = False,
    limit: int | None = None,
    computes: bool = True,
) -> tuple[list[int], int]:
    """Bytes of live tensors after each operation of a forward and backward pass in train mode.

    Parameters and buffers are not counted, gradients are. Before the step there are none.

    Args:
        module, autocast, as_cuda: See `StepMemory`.
        batch: A batch on the model's device.
        limit, computes: See `LiveMemory`. The limit is without the batch.

    Returns:
        The bytes, and the index of the end of the forward pass.

    Raises:
        torch.OutOfMemoryError: More than ``limit`` is needed.
    """
    own = [batch.waveform_BT, batch.tokens_BU]
    existing = [*module.parameters(), *module.buffers(), *own]
    with probing(module), LiveMemory(existing, limit, computes=computes) as live, _MostCostly():
        module.train()
        with autocast(), _LikeCuda() if as_cuda else nullcontext():
            loss = module.loss(batch).total
            # What the loss held in variables is free now.
            end = len(live.timeline)
            live.timeline.append(live.now)
            torch.autograd.backward(loss)
    before = sum(tensor_bytes(tensor) for tensor in own)
    return [before + bytes_ for bytes_ in live.timeline], end


class _MostCostly(TorchFunctionMode):
    """Draws 1 where a single number is drawn, which decides about dropped layers and about Whisper's tail."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.rand and args and not isinstance(args[0], int) and len(args[0]) == 0:
            return torch.ones(())
        return func(*args, **(kwargs or {}))


class _LikeCuda(TorchFunctionMode):
    """Replaces operations of the CPU by others that keep what CUDA's keep."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DROPOUT:
            return _dropout(*args, **kwargs)
        if func is functional.scaled_dot_product_attention:
            kwargs["dropout_p"] = 0.0
        elif func in _SINGLE and torch.is_autocast_enabled("cpu"):
            args = (args[0].float(), *args[1:])
        return func(*args, **kwargs)


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, *_: Any, **__: Any) -> Tensor:
    dropped: Tensor = torch.native_dropout(x, p, True)[0] if training and p > 0 else x
    return dropped


# What is there in every step --------------------------------------------------------------------------------------


def tensor_bytes(tensor: Tensor) -> int:
    """Size of the values of a tensor."""
    return tensor.numel() * tensor.element_size()


def weights_bytes(module: nn.Module) -> int:
    """Size of parameters and buffers."""
    return sum(map(tensor_bytes, [*module.parameters(), *module.buffers()]))


def gradients_bytes(module: nn.Module) -> int:
    """Size of the gradients of all that trains."""
    return sum(tensor_bytes(parameter) for parameter in module.parameters() if parameter.requires_grad)


def optimizer_bytes(module: ASRModule) -> int:
    """Size of the states of all optimizers after an update."""
    assert module.optim is not None
    sides = [(side, groups) for side, groups in module.sides.groups() if _trains(groups)]
    return sum(state_bytes(module.optim.optimizers[side].build(groups)) for side, groups in sides)


def _trains(groups: Sequence[LayerGroup]) -> bool:
    return any(parameter.requires_grad for group in groups for parameter in group.parameters())
