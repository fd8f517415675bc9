"""Forward passes of a causal language model that continue earlier texts.

A search extends many texts by few tokens, and returns to earlier texts in any order. Keys and values of the texts read
so far are kept, and a new text is read from the end of its longest known prefix::

    kept      <s> the cat          <s> the cat sat
    new       <s> the cat ran      <s> the cat sat on      <s> a
    read                  ran                      on          a

A batch aligns the ends of the known prefixes: padding precedes them, and follows the new tokens.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Tokens = tuple[int, ...]


class PrefixCache:
    """Keys and values of texts, the least recently used ones removed first.

    Args:
        model: A causal language model of transformers.
        new_cache: Makes an empty ``DynamicCache`` of transformers.
        max_bytes: int, size of the keys and values that `trim` leaves.

    Attributes:
        works: bool, whether the model can continue earlier texts. Models without keys and values cannot.
        bytes: int, size of the kept keys and values.
    """

    def __init__(self, model: Any, new_cache: Callable[[], Any], *, max_bytes: int) -> None:
        self.model, self.max_bytes, self._new_cache = model, max_bytes, new_cache
        parameters = signature(model.forward).parameters
        self._takes_positions = "position_ids" in parameters
        # transformers renamed this argument in 5.24.
        self._cache_argument = "cache" if "cache" in parameters else "past_key_values"
        # Keys and values of each text, shape (2 * layers, heads, tokens, features).
        self._kept: OrderedDict[Tokens, Tensor] = OrderedDict()
        self.bytes = 0
        self.works = self._equals_whole_passes()

    def __contains__(self, text: Tokens) -> bool:
        return text in self._kept

    @torch.inference_mode()
    def extend(self, texts: Sequence[Tokens]) -> Tensor:
        """Reads texts and keeps their keys and values.

        Args:
            texts: Texts, each with at least one token.

        Returns:
            Log-probabilities of the next token of each text, ``log_probs_NV``.
        """
        known = [self._longest_prefix(text) for text in texts]
        starts = [0 if one is None else one.shape[2] for one in known]
        new = [text[start:] for text, start in zip(texts, starts, strict=True)]
        log_probs_BUV, cache = self._forward(known, new)
        pairs = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        widest = max(starts)
        for row, (text, start) in enumerate(zip(texts, starts, strict=True)):
            inside = slice(widest - start, widest - start + len(text))
            self._keep(text, torch.stack([tensor[row, :, inside] for tensor in pairs]))
        return log_probs_BUV[torch.arange(len(new)), torch.tensor([len(own) - 1 for own in new])]

    @torch.inference_mode()
    def continued(self, texts: Sequence[Tokens], tokens: Sequence[Tokens]) -> Tensor:
        """Reads tokens after texts that are in the cache, without keeping the result.

        Returns:
            Log-probabilities after each of the tokens, ``log_probs_BUV``. Values after the last are arbitrary.
        """
        return self._forward([self._kept[text] for text in texts], tokens)[0]

    def trim(self) -> None:
        """Removes the least recently used texts beyond ``max_bytes``. Call it when the texts of a batch are scored."""
        while self.bytes > self.max_bytes:
            self.bytes -= self._kept.popitem(last=False)[1].nbytes

    def _keep(self, text: Tokens, pairs: Tensor) -> None:
        if text in self._kept:
            self.bytes -= self._kept.pop(text).nbytes
        self._kept[text] = pairs
        self.bytes += pairs.nbytes

    def _longest_prefix(self, text: Tokens) -> Tensor | None:
        """Keys and values of the longest known prefix that leaves at least one token to read."""
        for length in range(len(text), 0, -1):
            found = self._kept.get(text[:length])
            if found is not None:
                self._kept.move_to_end(text[:length])
                if length < len(text):
                    return found
                return found[:, :, :-1] if length > 1 else None
        return None

    def _forward(self, known: Sequence[Tensor | None], new: Sequence[Tokens]) -> tuple[Tensor, Any]:
        """``log_probs_BUV`` after new tokens, and the cache with all keys and values."""
        device = next(self.model.parameters()).device
        starts = [0 if one is None else one.shape[2] for one in known]
        widest = max(starts)
        tokens_BU = pad_sequence([torch.tensor(own) for own in new], batch_first=True)
        places = torch.arange(-widest, tokens_BU.shape[1])
        starts_B1, lengths_B1 = torch.tensor(starts)[:, None], torch.tensor([len(own) for own in new])[:, None]
        mask_BU = (places >= -starts_B1) & (places < lengths_B1)
        cache = self._joined(known, widest)
        options: dict[str, Any] = {self._cache_argument: cache}
        if self._takes_positions:
            options["position_ids"] = (starts_B1 + torch.where(mask_BU, places, 0)[:, widest:]).to(device)
        mask_BU = mask_BU.to(device, torch.int64)
        logits_BUV = self.model(
            input_ids=tokens_BU.to(device), attention_mask=mask_BU, use_cache=True, **options
        ).logits
        log_probs_BUV = logits_BUV.to(torch.promote_types(logits_BUV.dtype, torch.float32)).log_softmax(-1)
        return log_probs_BUV, cache

    def _joined(self, known: Sequence[Tensor | None], widest: int) -> Any:
        """A cache of transformers with the keys and values of a batch, padded before their start."""
        cache = self._new_cache()
        first = next((one for one in known if one is not None), None)
        if first is None:
            return cache
        rows, heads, _, features = first.shape
        joined = first.new_zeros(rows, len(known), heads, widest, features)
        for row, one in enumerate(known):
            if one is not None:
                joined[:, row, :, widest - one.shape[2] :] = one
        for layer in range(rows // 2):
            cache.update(joined[2 * layer], joined[2 * layer + 1], layer)
        return cache

    def _equals_whole_passes(self) -> bool:
        """Whether the model takes keys and values as this class gives them, tried on three texts."""
        size = min(7, self.model.config.get_text_config().vocab_size)
        texts = [tuple((row + at * at) % size for at in range(length)) for row, length in enumerate((9, 6, 8))]
        try:
            whole_NV = torch.stack([self.extend([text])[0] for text in texts])
            self._clear()
            self.extend([texts[0][:4], texts[2][:7]])
            parts_NV = self.extend(texts)
        except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
            return False
        finally:
            self._clear()
        precision = torch.finfo(next(self.model.parameters()).dtype).eps ** 0.5
        return bool((whole_NV - parts_NV).abs().max() < 10 * precision)

    def _clear(self) -> None:
        self._kept.clear()
        self.bytes = 0
