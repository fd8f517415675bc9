"""A back-off n-gram model as tensors, looked up for many states and words at once.

The n-grams of all lengths are one sorted array of keys. A key is ``context node * (number of words + 1) + last word``.
Backing off visits a chain of contexts, each a suffix of the one before::

    chain of a state           a b c          b c                   c                      (empty)
    back-off weights           0              backoff(a b c)        + backoff(b c)         + backoff(c)
    keys of the word w         (a b c, w)     (b c, w)              (c, w)                 (w)

All keys of a chain are searched together. The first key that is stored gives the log-probability and the next state.
So a lookup is a fixed number of operations, and nothing waits for the device.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssl_asr.decoding.arpa import Float64s, Int64s


@dataclass(frozen=True, kw_only=True)
class NGramArrays:
    """An n-gram model as arrays.

    Attributes:
        keys_M: Keys of all n-grams, sorted.
        log_probs_M, nexts_M: Log-probability of each n-gram, and the state after it.
        chains_SR: Context nodes of each state, the longest first. The empty context, node 0, fills the rest of a row.
        backoffs_SR: Sum of the back-off weights before each context of the chain.
        words: Number of words that keys are made with.
        ids: Id of each word.
        begin: State at the start of a sentence.
        end: Id of the end of the sentence, or None if the model has none.
        unknown: Id of an out-of-vocabulary word.
    """

    keys_M: Int64s
    log_probs_M: Float64s
    nexts_M: Int64s
    chains_SR: Int64s
    backoffs_SR: Float64s
    words: int
    ids: Mapping[str, int]
    begin: int
    end: int | None
    unknown: int


class NGramTable:
    """An n-gram model on a device.

    Args:
        arrays: The model.
        weight: Weight of its log-probabilities.
        device: Device of the lookups.
    """

    def __init__(self, arrays: NGramArrays, *, weight: float, device: torch.device) -> None:
        def on_device(array: Int64s | Float64s) -> Tensor:
            tensor = torch.from_numpy(array)
            return tensor.to(device, torch.float32 if tensor.is_floating_point() else torch.int64)

        self.begin, self.unknown, self.states = arrays.begin, arrays.unknown, len(arrays.chains_SR)
        self._end = arrays.end
        # A search for a key beyond the last one finds this key, which is none of the keys.
        self._keys_M = on_device(np.append(arrays.keys_M, np.iinfo(np.int64).max))
        self._log_probs_M = on_device(weight * np.append(arrays.log_probs_M, 0.0))
        self._nexts_M = on_device(np.append(arrays.nexts_M, 0))
        self._keys_SR = on_device(arrays.chains_SR * arrays.words)
        self._backoffs_SR = on_device(weight * arrays.backoffs_SR)

    def lookup(self, states: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted log-probability of words after states, and the next states.

        Args:
            states: int64 states.
            words: int64 word ids, of a shape that broadcasts with that of the states.
        """
        wanted = self._keys_SR[states] + words[..., None]
        found = torch.searchsorted(self._keys_M, wanted)
        # The empty context is the last of each chain, and it has all words.
        first = (self._keys_M.take(found) == wanted).max(-1, keepdim=True).indices
        at = found.gather(-1, first)[..., 0]
        backoffs = self._backoffs_SR.take(torch.add(first[..., 0], states, alpha=self._backoffs_SR.shape[1]))
        return self._log_probs_M.take(at) + backoffs, self._nexts_M.take(at)

    def ends(self, states: Tensor) -> Tensor:
        """Weighted log-probability of the end of the sentence after states. 0 if the model has no ``</s>``."""
        if self._end is None:
            return torch.zeros(states.shape, device=states.device)
        return self.lookup(states, torch.full_like(states, self._end))[0]
