"""Decoding steps as CUDA graphs.

A step launches about 40 small kernels per layer, which takes the host longer than the device. A CUDA graph launches
them all at once. The first step of each shape runs as usual and is recorded. All others are replayed::

    filled columns    4              5        6        7             63       64
    step              run, record    replay   replay   replay   …    replay   run, record with the next width
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ssl_asr.console import verified
from ssl_asr.models.decoding_state import DecodingState, FixedStep

# A graph is recorded if at least this number of tokens fits into the width. Recording costs as much as two steps.
_LEAST_TOKENS = 8
_INSTEAD = "Each decoding step launches its kernels one by one, which is slower."


class StepGraphs:
    """Runs the steps of a decoder, and replays them where that is possible.

    Graphs are recorded anew for each batch, because they read the cache of the batch.

    The first replay of a decoder is compared with the same step without a graph. If the results differ, or if a step
    cannot be recorded, a warning says so, and all later steps run without graphs.

    Args:
        step: Computes the logits of a step of fixed shapes. See `TransformerDecoder.fixed_step`.
    """

    device_types = frozenset({"cuda"})

    def __init__(self, step: Callable[[DecodingState], Tensor]) -> None:
        self._step = step
        self._works: bool | None = None
        # Graphs share the memory of their intermediate results. It exists as long as one graph of it does.
        self._pool: Any = None
        self._last: object = None

    def takes(self, state: DecodingState, tokens_N1: Tensor) -> bool:
        """Whether a step can run with fixed shapes: on a GPU, for inference, with one token after the prompt."""
        return (
            tokens_N1.device.type in self.device_types
            and self._works is not False
            and state.filled > 0
            and not state.watch
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled(tokens_N1.device.type)
        )

    def step(self, state: DecodingState, tokens_N1: Tensor) -> Tensor:
        """Appends a token to each row. Returns the logits of the next one, which the next step overwrites."""
        fixed = state.fixed
        is_new = fixed is None or state.filled == fixed.width
        if fixed is None or is_new:
            fixed = state.fix()
        fixed.tokens_N1.copy_(tokens_N1)
        if fixed.replay is not None:
            assert fixed.logits_NV is not None
            fixed.replay()
            logits_NV = fixed.logits_NV
        else:
            logits_NV = self._step(state)
            if is_new and fixed.width - state.filled >= _LEAST_TOKENS:
                self._record(state, fixed, logits_NV)
        state.filled += 1
        return logits_NV

    def _record(self, state: DecodingState, fixed: FixedStep, expected_NV: Tensor) -> None:
        """Records a step that has just run."""

        def agrees() -> bool:
            replay, logits_NV = self.record(lambda: self._step(state), expected_NV.device)
            if not self._works:
                # The same step again. Its beams are in place already.
                fixed.position_1.fill_(state.filled)
                replay()
                if not _near(logits_NV, expected_NV):
                    return False
            fixed.replay, fixed.logits_NV = replay, logits_NV
            return True

        self._works = verified(agrees, what="Decoding: CUDA graphs do not work", instead=_INSTEAD)
        if not self._works:
            # A wrong replay may have written to the cache.
            fixed.position_1.fill_(state.filled)
            self._step(state)

    def record(self, run: Callable[[], Tensor], device: torch.device) -> tuple[Callable[[], object], Tensor]:
        """Records operations on a GPU without running them.

        Returns:
            A function that runs them, and their result, which it overwrites.
        """
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        graph = torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            # Other threads may use the GPU meanwhile.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                out = run()
            finally:
                graph.capture_end()
        torch.cuda.current_stream(device).wait_stream(stream)
        self._last = graph
        return graph.replay, out


def _near(found_NV: Tensor, expected_NV: Tensor) -> bool:
    """Whether logits agree, up to the rounding of 16 bits."""
    found_NV, expected_NV = found_NV.float(), expected_NV.float()
    return bool((found_NV - expected_NV).abs().max() <= 0.02 * expected_NV.abs().max())
