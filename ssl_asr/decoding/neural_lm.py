"""Causal language models of transformers, scored over words or over labels, in batches.

Let ``t[1..n]`` be the tokens of the words so far, after the model's start token::

    log p(word | t[1..n]) = sum of log p(t[n+i] | start, t[1..n+i-1]) over the tokens t[n+1..n+m] of the word

A state is the tuple of all tokens read so far. A forward pass reads the tokens after the longest prefix whose keys and
values are known (see `ssl_asr.decoding.prefix_cache`). It reads whole texts, and all texts if the model has no keys and
values, from their beginning.

If a text is longer than the context of the model, its last tokens are read: half of the context, the start token
included, so that there is room for a word.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ssl_asr.console import silent
from ssl_asr.decoding.arpa import Float64s
from ssl_asr.decoding.fusion.automata import Automaton, name_missing_labels
from ssl_asr.decoding.prefix_cache import PrefixCache, Tokens
from ssl_asr.decoding.word_model import WordModel
from ssl_asr.errors import LanguageModelError

# Texts per forward pass.
_BATCH = 64
# Results that are kept at most: words after states, and cells of rows.
_KEPT_WORDS = 200_000
_KEPT_CELLS = 50_000_000
# Keys and values that are kept at most.
_KEPT_BYTES = 512 * 2**20


class NeuralLM(WordModel[Tokens]):
    """A causal language model as a `WordModel`.

    Args:
        model: A ``…ForCausalLM`` of transformers, in float32 or in the dtype of its checkpoint.
        tokenizer: The tokenizer of the model.
        source: Name in messages.

    Raises:
        LanguageModelError: The tokenizer has neither a start nor an end token.
    """

    batched = True

    def __init__(self, model: Any, tokenizer: Any, *, source: str) -> None:
        from transformers import DynamicCache

        self.model, self.tokenizer, self.source = model.eval(), tokenizer, source
        self.prefixes = PrefixCache(self.model, DynamicCache, max_bytes=_KEPT_BYTES)
        end, start = tokenizer.eos_token_id, tokenizer.bos_token_id
        if start is None and end is None:
            what = "its tokenizer has neither a start nor an end token"
            raise LanguageModelError(source, what, "use another language model")
        # GPT-2 has no start token: a text follows the end token of another text.
        self.start_id: int = end if start is None else start
        self.end_id: int | None = end
        context: int | None = getattr(model.config, "max_position_embeddings", None)
        # Longest text that is read whole, and longest piece that is scored in one pass.
        self._most: int | None = None if context is None else context // 2
        self._words: OrderedDict[tuple[Tokens, str], tuple[float, Tokens]] = OrderedDict()
        self._rows: OrderedDict[Tokens, Tensor] = OrderedDict()
        self._spelled: dict[tuple[bool, str], Tokens] = {}

    @classmethod
    def load(cls, source: str) -> "NeuralLM":
        """Load a model from a folder or from the Hugging Face Hub, onto the accelerator if there is one.

        Raises:
            LanguageModelError: There is no such model, or it is not a causal language model.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            with silent():
                # The spelling of a special token in a text, such as </s>, is text.
                tokenizer = AutoTokenizer.from_pretrained(source, split_special_tokens=True)
                model = AutoModelForCausalLM.from_pretrained(source)
        except (OSError, ValueError, KeyError, ImportError) as error:
            what = f"cannot be read as a causal language model of transformers: {str(error).splitlines()[0]}"
            raise LanguageModelError(source, what, "give an ARPA file, or a folder with model and tokenizer") from None
        device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        return cls(model.to(device), tokenizer, source=source)

    @property
    def begin(self) -> Tokens:
        """State before the first word."""
        return (self.start_id,)

    def spell(self, word: str, *, first: bool) -> Tokens:
        """Tokens of a word, with a space before it unless it is the first."""
        found = self._spelled.get((first, word))
        if found is None:
            if first:
                found = tuple(self.tokenizer.encode(word, add_special_tokens=False))
            else:
                # Some tokenizers add a space before a text, so the word is encoded after another word.
                before = self.tokenizer.encode("a", add_special_tokens=False)
                whole = self.tokenizer.encode(f"a {word}", add_special_tokens=False)
                found = tuple(whole[len(before) :])
            self._spelled[first, word] = found
        return found

    def score(self, state: Tokens, word: str) -> tuple[float, Tokens]:
        """Log-probability of a word after a state, and the next state."""
        found = self._words.get((state, word))
        if found is None:
            self.prefetch([(state, word)])
            found = self._words[state, word]
        return found

    def prefetch(self, pairs: Sequence[tuple[Tokens, str]]) -> None:
        """Compute the scores of words after states in batches."""
        unknown = [pair for pair in dict.fromkeys(pairs) if pair not in self._words]
        pieces = {pair: self.spell(pair[1], first=len(pair[0]) == 1) for pair in unknown}
        short = {pair: piece for pair, piece in pieces.items() if self._fits(piece)}
        rest = [pair for pair in unknown if pair not in short]
        totals = dict(zip(rest, self._continued([s for s, _ in rest], [pieces[pair] for pair in rest]), strict=True))
        # Pieces of equal length need no padding.
        ordered = sorted(short, key=lambda pair: (len(short[pair]), pair[0]))
        for first in range(0, len(ordered), _BATCH):
            own = ordered[first : first + _BATCH]
            totals.update(zip(own, self._score_words([s for s, _ in own], [short[pair] for pair in own]), strict=True))
            self._trim(rows=0)
        for state, word in unknown:
            self._words[state, word] = (totals[state, word], state + pieces[state, word])
        while len(self._words) > max(_KEPT_WORDS, len(pairs)):
            self._words.popitem(last=False)

    def _fits(self, piece: Tokens) -> bool:
        """Whether a word is scored after the keys and values of its state."""
        return self.prefixes.works and len(piece) > 0 and (self._most is None or len(piece) <= self._most)

    def _score_words(self, states: Sequence[Tokens], pieces: Sequence[Tokens]) -> list[float]:
        """Log-probabilities of the tokens of words after states. The first token has the row of its state."""
        read = [self._recent(state) for state in states]
        longer = [at for at, piece in enumerate(pieces) if len(piece) > 1]
        lacking = {states[at] for at in longer if read[at] not in self.prefixes}
        self._read_rows([state for state in dict.fromkeys(states) if state in lacking or state not in self._rows])
        totals = [float(self._rows[state][piece[0]]) for state, piece in zip(states, pieces, strict=True)]
        if longer:
            log_probs_BUV = self.prefixes.continued([read[at] for at in longer], [pieces[at][:-1] for at in longer])
            chosen_BU = _chosen(log_probs_BUV, [pieces[at][1:] for at in longer])
            for row_U, at in zip(chosen_BU, longer, strict=True):
                totals[at] += float(row_U[: len(pieces[at]) - 1].sum())
        return totals

    def end(self, state: Tokens) -> float:
        """Log-probability of the end of the text. 0 if the model has no end token."""
        return 0.0 if self.end_id is None else float(self.row(state)[self.end_id])

    def has_word(self, word: str) -> bool:
        """True: every word can be split into tokens."""
        return True

    def text_log_probs(self, texts: Sequence[str]) -> list[float]:
        """Log-probability of each whole text with its end."""
        end = () if self.end_id is None else (self.end_id,)
        tokens = [(*self.tokenizer.encode(text, add_special_tokens=False), *end) for text in texts]
        return self._continued([self.begin] * len(texts), tokens)

    def row(self, state: Tokens) -> Tensor:
        """Log-probabilities of all tokens after a state, on the CPU, shape (V,)."""
        found = self._rows.get(state)
        if found is None:
            self.prefetch_rows([state])
            found = self._rows[state]
        return found

    def prefetch_rows(self, states: Sequence[Tokens]) -> None:
        """Compute the rows of states in batches."""
        unknown = [state for state in dict.fromkeys(states) if state not in self._rows]
        for first in range(0, len(unknown), _BATCH):
            self._read_rows(unknown[first : first + _BATCH])
            self._trim(rows=len(states))

    def _trim(self, *, rows: int) -> None:
        """Remove the oldest rows, keys and values. At least ``rows`` rows stay."""
        self.prefixes.trim()
        most = max(rows, _KEPT_CELLS // len(next(iter(self._rows.values())))) if self._rows else 0
        while len(self._rows) > most:
            self._rows.popitem(last=False)

    def _read_rows(self, states: Sequence[Tokens]) -> None:
        """Compute the rows of states in one forward pass."""
        if not states:
            return
        read = [self._recent(state) for state in states]
        if self.prefixes.works:
            rows = self.prefixes.extend(read).cpu()
        else:
            log_probs_BUV = self._log_probs(read)
            rows = log_probs_BUV[torch.arange(len(read)), torch.tensor([len(recent) - 1 for recent in read])].cpu()
        # Copies, so that a row does not hold the memory of its batch.
        self._rows.update((state, row.clone()) for state, row in zip(states, rows, strict=True))

    def _recent(self, state: Tokens) -> Tokens:
        """The tokens that the model reads: all of a text, or its start token and its last tokens."""
        if self._most is None or len(state) <= self._most:
            return state
        return (state[0], *state[len(state) - self._most + 1 :])

    @torch.inference_mode()
    def _log_probs(self, states: Sequence[Tokens]) -> Tensor:
        """``log_probs_BUV`` after every token of these texts. Values beyond the end of a text are arbitrary."""
        device = next(self.model.parameters()).device
        tokens_BU = pad_sequence([torch.tensor(state) for state in states], batch_first=True).to(device)
        lengths_B1 = torch.tensor([len(state) for state in states])[:, None]
        mask_BU = (torch.arange(tokens_BU.shape[1]) < lengths_B1).to(device, torch.int64)
        logits_BUV = self.model(input_ids=tokens_BU, attention_mask=mask_BU, use_cache=False).logits
        dtype = torch.promote_types(logits_BUV.dtype, torch.float32)
        log_probs_BUV: Tensor = logits_BUV.to(dtype).log_softmax(-1)
        return log_probs_BUV

    def _continued(self, states: Sequence[Tokens], tokens: Sequence[Tokens]) -> list[float]:
        """Log-probability of tokens after states. Tokens that are too many for one pass are scored in pieces."""
        owners: list[int] = []
        pieces: list[tuple[Tokens, Tokens]] = []
        for owner, (state, own) in enumerate(zip(states, tokens, strict=True)):
            size = max(1, len(own)) if self._most is None else self._most
            for first in range(0, len(own), size):
                owners.append(owner)
                pieces.append((self._recent(state + own[:first]), own[first : first + size]))
        totals = [0.0] * len(states)
        for first in range(0, len(pieces), _BATCH):
            part = slice(first, first + _BATCH)
            for owner, log_prob in zip(owners[part], self._score_pieces(pieces[part]), strict=True):
                totals[owner] += log_prob
        return totals

    def _score_pieces(self, pieces: Sequence[tuple[Tokens, Tokens]]) -> list[float]:
        """Log-probability of the second part of each pair after its first part, in one forward pass."""
        texts = [state + own for state, own in pieces]
        # The last token of a text is a target only.
        log_probs_BUV = self._log_probs([text[:-1] for text in texts])
        chosen_BU = _chosen(log_probs_BUV, [text[1:] for text in texts])
        totals = []
        for row, (state, own) in enumerate(pieces):
            first = len(state) - 1
            totals.append(float(chosen_BU[row, first : first + len(own)].sum()))
        return totals

    def tokens_like(self, labels: Sequence[str | None]) -> list[int]:
        """The token with the spelling of each label. -1 if the model has no such token.

        Raises:
            LanguageModelError: No label has a token.
        """
        by_text: dict[str, int] = {}
        for token, text in enumerate(self._spellings()):
            by_text.setdefault(text, token)
        found = [-1 if label is None else by_text.get(label, -1) for label in labels]
        if all(token < 0 for token in found):
            shown = [label for label in labels if label][:3]
            what = f"has no token for any label (first labels: {shown})"
            raise LanguageModelError(self.source, what, "use decoder.lm_unit=word")
        texts = [label for label in labels if label]
        lacking = [repr(label) for label in texts if label not in by_text]
        name_missing_labels(lacking, len(texts), self.source, "have a fixed low score")
        return found

    def _spellings(self) -> list[str]:
        """Text of each token, with a space where a word starts."""
        names = self.tokenizer.convert_ids_to_tokens(range(len(self.tokenizer)))
        if any(name.startswith("Ġ") for name in names):
            return [str(self.tokenizer.convert_tokens_to_string([name])) for name in names]
        # Vocabularies of words or of sentencepiece mark spaces with these characters.
        return [" " if name == "|" else name.replace("▁", " ") for name in names]


def _chosen(log_probs_BUV: Tensor, targets: Sequence[Tokens]) -> Tensor:
    """Log-probability of each target, ``chosen_BU`` in float64 on the CPU. Values beyond the last are arbitrary."""
    targets_BU = pad_sequence([torch.tensor(own) for own in targets], batch_first=True)
    return log_probs_BUV.gather(2, targets_BU.to(log_probs_BUV.device)[..., None])[..., 0].cpu().double()


class LabelNeural(Automaton[Tokens]):
    """A causal language model over labels, weighted. Keys are the states of the model.

    Args:
        model: Language model with a token for each label.
        labels: Spelling of each label. None for ids that no text contains (blank, unknown).
        weight: Weight of the log-probabilities.
        missing: Log-probability of labels that the model has no token for.
    """

    def __init__(self, model: NeuralLM, labels: Sequence[str | None], *, weight: float, missing: float = -20.0) -> None:
        self.model, self.weight = model, weight
        ids_V = torch.tensor(model.tokens_like(labels))
        self._ids_V, self._has_V = ids_V.clamp(min=0), ids_V >= 0
        self._missing_V = torch.full(ids_V.shape, weight * missing)
        self._missing_V[[i for i, label in enumerate(labels) if label is None]] = -torch.inf

    @property
    def begin(self) -> Tokens:
        """Key before the first label."""
        return self.model.begin

    def prefetch(self, keys: Sequence[Tokens]) -> None:
        """Compute the rows of keys in batches."""
        self.model.prefetch_rows(keys)

    def rows(self, keys: Sequence[Tokens]) -> Float64s:
        """Weighted log-probability of each label after each key, ``(N, V)``."""
        log_probs_NV = torch.stack([self.model.row(key)[self._ids_V] for key in keys])
        rows: Float64s = torch.where(self._has_V, self.weight * log_probs_NV, self._missing_V).double().numpy()
        return rows

    def advance(self, key: Tokens, label: int) -> Tokens:
        """Key after one more label. A label that the model has no token for is skipped."""
        return (*key, int(self._ids_V[label])) if self._has_V[label] else key

    def end(self, key: Tokens) -> float:
        """Weighted log-probability of the end of the text."""
        return self.weight * self.model.end(key)
