"""Decoding steps as CUDA graphs.

A step launches about 40 small kernels per layer, which takes the host longer than the device. A CUDA graph launches
them all at once. The first step of each shape runs as usual and is recorded. All others are replayed, also those of
later batches, whose shapes are rounded up::

    filled columns    4              5        6        7             63       64
    first batch       run, record    replay   replay   replay   …    replay   run, record with the next width
    later batches     replay         replay   replay   replay   …    replay   replay
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssl_asr.console import verified
from ssl_asr.models.cache_block import CacheBlock, StepShape
from ssl_asr.models.decoding_state import DecodingState, FixedStep

# A graph is recorded if at least this number of tokens fits into the width. Recording costs as much as two steps.
_LEAST_TOKENS = 8
# Number of graphs to keep. The one that was used least recently is dropped first.
_KEEP = 64
_INSTEAD = "Each decoding step launches its kernels one by one, which is slower."


@dataclass(slots=True)
class _Kept:
    """A step of a shape.

    Attributes:
        state: DecodingState in the block of memory, with the rows that the shape has, padding included.
        replay: Runs the step on the device and writes ``logits_NV``. None if the step is not recorded.
        logits_NV: Tensor of shape (rows * beams, vocabulary). None if the step is not recorded.
    """

    state: DecodingState
    replay: Callable[[], object] | None = None
    logits_NV: Tensor | None = None


class StepGraphs:
    """Runs the steps of a decoder, and replays them where that is possible.

    Graphs are kept for later batches. They are dropped if the weights of the decoder are other tensors than before. A
    decoder with layers that are not of torch or transformers (LoRA) may compute something else without new weights, so
    its graphs serve one search only.

    The first replay of a decoder is compared with the same step without a graph. If the results differ, or if a step
    cannot be recorded, a warning says so, and all later steps run without graphs.

    Args:
        step: Computes the logits of a step of fixed shapes. See `TransformerDecoder.fixed_step`.
        net: Module that holds the weights of the decoder.
    """

    device_types = frozenset({"cuda"})

    def __init__(self, step: Callable[[DecodingState], Tensor], net: nn.Module) -> None:
        self._step = step
        self._net = net
        self._works: bool | None = None
        self._weights: object = None
        self._memory = CacheBlock()
        self._kept: OrderedDict[tuple[StepShape, bool], _Kept] = OrderedDict()
        self._current: _Kept | None = None
        # All graphs share the memory of their logits and that of their intermediate results, because only one runs at a
        # time. The latter exists as long as one graph of it does.
        self._logits: Tensor | None = None
        self._pool: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of a decoder has other weights, so it records graphs of its own.
        return StepGraphs, (self._step, self._net)

    def takes(self, state: DecodingState, tokens_N1: Tensor) -> bool:
        """Whether a step can run with fixed shapes: on a GPU, for inference, with one token after the prompt."""
        return (
            tokens_N1.device.type in self.device_types
            and self._works is not False
            and state.filled > 0
            and not state.watch
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled(tokens_N1.device.type)
            and (state.fixed is not None or self._memory.holds(state))
        )

    def step(self, state: DecodingState, tokens_N1: Tensor) -> Tensor:
        """Appends a token to each row. Returns the logits of the next one, which the next step overwrites."""
        owner, fixed = self._memory.is_owner(state), state.fixed
        is_new = not owner or fixed is None or state.filled == fixed.width
        if is_new:
            fixed = self._place(state, same_search=owner)
        current = self._current
        assert fixed is not None
        assert current is not None
        fixed.tokens_N1.copy_(tokens_N1)
        if current.replay is not None:
            assert current.logits_NV is not None
            current.replay()
            logits_NV = current.logits_NV
        else:
            logits_NV = self._step(current.state)
            if is_new and fixed.width - state.filled >= _LEAST_TOKENS:
                self._record(current, state.filled, logits_NV[: len(tokens_N1)])
        state.filled += 1
        return logits_NV[: len(tokens_N1)]

    def release(self) -> None:
        """Frees the memory of all graphs. The next search records new ones."""
        self._drop()
        self._memory = CacheBlock()

    def _place(self, state: DecodingState, *, same_search: bool) -> FixedStep:
        """Moves a batch to the memory of its shape."""
        if not same_search:
            weights = _weights(self._net)
            if weights is None or weights != self._weights:
                self._drop()
            self._weights = weights
        state.grow()
        shape = StepShape.of(state)
        if not self._memory.has_place(state, shape):
            self._drop()
        key = shape, torch.is_inference_mode_enabled()
        if key not in self._kept:
            self._kept[key] = _Kept(self._memory.views(state, shape))
            if len(self._kept) > _KEEP:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        self._current = self._kept[key]
        return self._memory.move(state, self._current.state)

    def _drop(self) -> None:
        self._kept.clear()
        self._current = self._logits = self._pool = None

    def _record(self, kept: _Kept, filled: int, expected_NV: Tensor) -> None:
        """Records a step that has just run."""
        fixed = kept.state.fixed
        assert fixed is not None

        def agrees() -> bool:
            out_NV = self._room(len(fixed.rows_N), expected_NV)
            replay = self.record(lambda: out_NV.copy_(self._step(kept.state)), out_NV.device)
            if not self._works:
                # The same step again. Its beams are in place already.
                fixed.position_1.fill_(filled)
                replay()
                if not _near(out_NV[: len(expected_NV)], expected_NV):
                    return False
            kept.replay, kept.logits_NV = replay, out_NV
            return True

        self._works = verified(agrees, what="Decoding: CUDA graphs do not work", instead=_INSTEAD)
        if not self._works:
            # A wrong replay may have written to the cache.
            fixed.position_1.fill_(filled)
            self._step(kept.state)
            self._drop()

    def _room(self, rows: int, like_NV: Tensor) -> Tensor:
        """Returns memory for logits."""
        size = rows * like_NV.shape[1]
        if self._logits is None or len(self._logits) < size or self._logits.dtype != like_NV.dtype:
            with torch.inference_mode(False):
                self._logits = like_NV.new_empty(size)
        with torch.inference_mode(False):
            return self._logits[:size].view(rows, -1)

    def record(self, run: Callable[[], Tensor], device: torch.device) -> Callable[[], object]:
        """Records operations on a GPU without running them. Returns a function that runs them."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        graph = torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            # Other threads may use the GPU meanwhile.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                run()
            finally:
                graph.capture_end()
        torch.cuda.current_stream(device).wait_stream(stream)
        return graph.replay


def _weights(net: nn.Module) -> tuple[object, ...] | None:
    """What a recorded step depends on besides its inputs. None if that is not known."""
    for module in net.modules():
        known = type(module).__module__.startswith(("torch.nn.", "transformers."))
        if not known or module._forward_hooks or module._forward_pre_hooks:
            return None
    tensors = [*net.parameters(), *net.buffers()]
    return net.training, *((tensor.data_ptr(), tensor.dtype) for tensor in tensors)


def _near(found_NV: Tensor, expected_NV: Tensor) -> bool:
    """Whether logits agree, up to the rounding of 16 bits."""
    found_NV, expected_NV = found_NV.float(), expected_NV.float()
    return bool((found_NV - expected_NV).abs().max() <= 0.02 * expected_NV.abs().max())
