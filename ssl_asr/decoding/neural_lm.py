"""Causal language models of transformers, asked about words and labels a batch at a time.

A text is scored from the model's start token on, an n-gram model's way: a word after the words before it, by all the
tokens it is cut into. States are the tokens read so far, and every question is answered from the beginning of its
text: searches come back to texts they left, so nothing but answers is kept.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ssl_asr.decoding.fusion.automata import Automaton
from ssl_asr.decoding.ngram import Float64s
from ssl_asr.decoding.word_model import WordModel
from ssl_asr.errors import LanguageModelError

Tokens = tuple[int, ...]

# Texts asked about at once, and words and rows of which the answers are kept.
_BATCH = 64
_KEPT_WORDS = 200_000
_KEPT_CELLS = 50_000_000


class NeuralLM(WordModel[Tokens]):
    """A causal language model behind the `ssl_asr.decoding.word_model.WordModel` contract; a state is what was read.

    Args:
        model: transformers' ``…ForCausalLM``, in float32 or as its checkpoint has it.
        tokenizer: its own.
        source: its name in messages.

    Raises:
        LanguageModelError: its tokenizer names neither a start nor an end of text.
    """

    batched = True

    def __init__(self, model: Any, tokenizer: Any, *, source: str) -> None:
        self.model, self.tokenizer, self.source = model.eval(), tokenizer, source
        end, start = tokenizer.eos_token_id, tokenizer.bos_token_id
        if start is None and end is None:
            raise LanguageModelError(source, "has neither a start nor an end token", "another language model")
        # GPT-2 and its like begin after the end of the text before.
        self.start_id: int = end if start is None else start
        self.end_id: int | None = end
        # A text may be longer than what the model reads: its last tokens count then, and leave room for a word.
        self._most: int | None = getattr(model.config, "max_position_embeddings", None)
        self._words: OrderedDict[tuple[Tokens, str], tuple[float, Tokens]] = OrderedDict()
        self._rows: OrderedDict[Tokens, Tensor] = OrderedDict()
        self._spelt: dict[tuple[bool, str], Tokens] = {}

    @classmethod
    def load(cls, source: str) -> "NeuralLM":
        """The model of a folder or of a name on the Hugging Face Hub, on the accelerator where there is one.

        Raises:
            LanguageModelError: there is none, or it is of another kind.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
            model = AutoModelForCausalLM.from_pretrained(source)
        except (OSError, ValueError, KeyError, ImportError) as error:
            what = f"is no causal language model of transformers that can be read: {str(error).splitlines()[0]}"
            raise LanguageModelError(source, what, "an ARPA file, or a folder with model and tokenizer") from None
        device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        return cls(model.to(device), tokenizer, source=source)

    @property
    def begin(self) -> Tokens:
        """The start of a text."""
        return (self.start_id,)

    def spell(self, word: str, *, first: bool) -> Tokens:
        """The tokens of a word, with the space before it unless it is the first."""
        found = self._spelt.get((first, word))
        if found is None:
            if first:
                found = tuple(self.tokenizer.encode(word, add_special_tokens=False))
            else:
                # Some tokenizers put a space of their own before a text: what follows another word is certain.
                before = self.tokenizer.encode("a", add_special_tokens=False)
                whole = self.tokenizer.encode(f"a {word}", add_special_tokens=False)
                found = tuple(whole[len(before) :])
            self._spelt[first, word] = found
        return found

    def score(self, state: Tokens, word: str) -> tuple[float, Tokens]:
        """Log-probability of a word after a state, and the state after it."""
        found = self._words.get((state, word))
        if found is None:
            self.prefetch([(state, word)])
            found = self._words[state, word]
        return found

    def prefetch(self, pairs: Sequence[tuple[Tokens, str]]) -> None:
        """Find out at once about words after states that are to be asked for."""
        unknown = [pair for pair in dict.fromkeys(pairs) if pair not in self._words]
        pieces = [self.spell(word, first=len(state) == 1) for state, word in unknown]
        totals = self._continued([state for state, _ in unknown], pieces)
        for (state, word), tokens, total in zip(unknown, pieces, totals, strict=True):
            self._words[state, word] = (total, state + tokens)
        while len(self._words) > max(_KEPT_WORDS, len(pairs)):
            self._words.popitem(last=False)

    def end(self, state: Tokens) -> float:
        """Log-probability of the end; 0 for a model that knows none."""
        return 0.0 if self.end_id is None else float(self.row(state)[self.end_id])

    def has_word(self, word: str) -> bool:
        """Every word can be cut into tokens."""
        return True

    def text_log_probs(self, texts: Sequence[str]) -> list[float]:
        """Log-probability of each whole text, its end included."""
        end = () if self.end_id is None else (self.end_id,)
        tokens = [(*self.tokenizer.encode(text, add_special_tokens=False), *end) for text in texts]
        return self._continued([self.begin] * len(texts), tokens)

    def row(self, state: Tokens) -> Tensor:
        """Log-probabilities of every token after a state, float32 on the CPU, ``(V,)``."""
        found = self._rows.get(state)
        if found is None:
            self.prefetch_rows([state])
            found = self._rows[state]
        return found

    def prefetch_rows(self, states: Sequence[Tokens]) -> None:
        """Find out at once about the tokens after states that are to be asked for."""
        unknown = [state for state in dict.fromkeys(states) if state not in self._rows]
        for first in range(0, len(unknown), _BATCH):
            own = unknown[first : first + _BATCH]
            read = [self._recent(state) for state in own]
            log_probs_BUV = self._log_probs(read)
            for row, (state, recent) in enumerate(zip(own, read, strict=True)):
                self._rows[state] = log_probs_BUV[row, len(recent) - 1].cpu()
        most = max(len(states), _KEPT_CELLS // len(next(iter(self._rows.values())))) if self._rows else 0
        while len(self._rows) > most:
            self._rows.popitem(last=False)

    def _recent(self, state: Tokens) -> Tokens:
        """A text as far as the model is given it: whole, or its start token and the last it has room for."""
        if self._most is None or len(state) <= self._most // 2:
            return state
        return (state[0], *state[len(state) - self._most // 2 + 1 :])

    @torch.inference_mode()
    def _log_probs(self, states: Sequence[Tokens]) -> Tensor:
        """``log_probs_BUV`` after every token of these texts; places beyond a text mean nothing."""
        device = next(self.model.parameters()).device
        tokens_BU = pad_sequence([torch.tensor(state) for state in states], batch_first=True).to(device)
        lengths_B1 = torch.tensor([len(state) for state in states])[:, None]
        mask_BU = (torch.arange(tokens_BU.shape[1]) < lengths_B1).to(device, torch.int64)
        logits_BUV = self.model(input_ids=tokens_BU, attention_mask=mask_BU, use_cache=False).logits
        log_probs_BUV: Tensor = logits_BUV.float().log_softmax(-1)
        return log_probs_BUV

    def _continued(self, states: Sequence[Tokens], tokens: Sequence[Tokens]) -> list[float]:
        """Log-probability of tokens after states, in as many pieces as the model reads at once."""
        places: list[int] = []
        pieces: list[tuple[Tokens, Tokens]] = []
        for place, (state, own) in enumerate(zip(states, tokens, strict=True)):
            size = max(1, len(own)) if self._most is None else self._most // 2
            for first in range(0, len(own), size):
                places.append(place)
                pieces.append((self._recent(state + own[:first]), own[first : first + size]))
        totals = [0.0] * len(states)
        for first in range(0, len(pieces), _BATCH):
            part = slice(first, first + _BATCH)
            for place, log_prob in zip(places[part], self._pieces(pieces[part]), strict=True):
                totals[place] += log_prob
        return totals

    def _pieces(self, pieces: Sequence[tuple[Tokens, Tokens]]) -> list[float]:
        """Log-probability of each second part after its first, in one pass."""
        wholes = [state + own for state, own in pieces]
        # The last token of a text is foretold and foretells nothing.
        log_probs_BUV = self._log_probs([whole[:-1] for whole in wholes])
        targets_BU = pad_sequence([torch.tensor(whole[1:]) for whole in wholes], batch_first=True)
        chosen_BU = log_probs_BUV.gather(2, targets_BU.to(log_probs_BUV.device)[..., None])[..., 0].cpu()
        totals = []
        for row, (state, own) in enumerate(pieces):
            first = len(state) - 1
            totals.append(float(chosen_BU[row, first : first + len(own)].double().sum()))
        return totals

    def tokens_like(self, labels: Sequence[str | None]) -> list[int]:
        """The token that is spelt like each label, -1 where there is none.

        Raises:
            LanguageModelError: there is none for any.
        """
        by_text: dict[str, int] = {}
        for token, text in enumerate(self._texts_of_tokens()):
            by_text.setdefault(text, token)
        found = [-1 if label is None else by_text.get(label, -1) for label in labels]
        if all(token < 0 for token in found):
            shown = [label for label in labels if label][:3]
            what = f"has a token for none of the labels, such as {shown}"
            raise LanguageModelError(self.source, what, "decoder.lm_unit=word")
        return found

    def _texts_of_tokens(self) -> list[str]:
        names = self.tokenizer.convert_ids_to_tokens(range(len(self.tokenizer)))
        if any(name.startswith("Ġ") for name in names):
            return [str(self.tokenizer.convert_tokens_to_string([name])) for name in names]
        # The characters that stand for a space in vocabularies of other kinds.
        return [" " if name == "|" else name.replace("▁", " ") for name in names]


class LabelNeural(Automaton[Tokens]):
    """A causal language model over the labels themselves, weighted.

    Args:
        model: of which a token is spelt like each label.
        labels: of the vocabulary, by id, spelt as text; None for ids that no text contains.
        weight: of log-probabilities.
        missing: what labels get that the model has no token for, a log-probability.
    """

    def __init__(self, model: NeuralLM, labels: Sequence[str | None], *, weight: float, missing: float = -20.0) -> None:
        self.model, self.weight = model, weight
        ids_V = torch.tensor(model.tokens_like(labels))
        self._ids_V, self._has_V = ids_V.clamp(min=0), ids_V >= 0
        self._missing_V = torch.full(ids_V.shape, weight * missing)
        self._missing_V[[i for i, label in enumerate(labels) if label is None]] = -torch.inf

    @property
    def begin(self) -> Tokens:
        """The start of a text."""
        return self.model.begin

    def prefetch(self, keys: Sequence[Tokens]) -> None:
        """Ask about all of them at once."""
        self.model.prefetch_rows(keys)

    def rows(self, keys: Sequence[Tokens]) -> Float64s:
        """Weighted log-probabilities."""
        log_probs_NV = torch.stack([self.model.row(key)[self._ids_V] for key in keys])
        rows: Float64s = torch.where(self._has_V, self.weight * log_probs_NV, self._missing_V).double().numpy()
        return rows

    def advance(self, key: Tokens, label: int) -> Tokens:
        """The text with a label more; one the model has no token for is passed over."""
        return (*key, int(self._ids_V[label])) if self._has_V[label] else key

    def end(self, key: Tokens) -> float:
        """Weighted log-probability of the end."""
        return self.weight * self.model.end(key)
