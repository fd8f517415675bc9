"""CTC decoding into the words of a lexicon and no others, by torchaudio's decoder (flashlight).

A word may be spelt in labels of any kind, phonemes among them, and in several ways. `ssl_asr.decoding.ctc.CtcBeam`
can be closed too (``lexicon=… unknown_score=null``), where words are spelt as they are written; this one is for
pronunciations.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_asr.decoding.ctc_beam import Found
from ssl_asr.decoding.fusion import spelt
from ssl_asr.errors import LanguageModelError, missing_extra
from ssl_asr.types import BLANK_ID

_SILENCE = "|"
_SHAPE = "lines of a word and, unless it is spelt as it is written, its labels: night n ai t"


@dataclass(frozen=True, kw_only=True)
class CtcLexicon:
    """The ``ctc_lexicon`` decoder.

    Attributes:
        lexicon: a text file; on each line a word, and its labels if it is not spelt as it is written; a word may
            stand on several lines. A label that is a space is written ``|``, and spaces in labels ``▁``.
        lm: an n-gram model over words, ``.arpa`` or KenLM's binary; null for none.
        lm_weight: of its log-probabilities (natural logarithm).
        word_score: added for each word.
        beam_size, max_labels, n_best: see `ssl_asr.decoding.ctc.CtcBeam`.
        beam_threshold: hypotheses whose score is so far below the best one's are dropped.
    """

    lexicon: str
    lm: str | None
    lm_weight: float
    word_score: float
    beam_size: int
    beam_threshold: float
    max_labels: int | None
    n_best: int

    def build(self, labels: Sequence[str | None]) -> "LexiconSearch":
        """The search over a vocabulary, its labels spelt as text.

        Raises:
            LanguageModelError: a file is missing or wrong, or a package is.
        """
        return LexiconSearch(self, labels)


class LexiconSearch:
    """torchaudio's decoder with its settings.

    Args:
        options: of the search.
        labels: by id, spelt as text; None for ids that no text contains.
    """

    def __init__(self, options: CtcLexicon, labels: Sequence[str | None]) -> None:
        try:
            import flashlight.lib.text  # noqa: F401
            from torchaudio.models.decoder import ctc_decoder
        except ImportError:
            otherwise = "decoder=ctc_beam decoder.unknown_score=null"
            raise missing_extra("decoder=ctc_lexicon", "flashlight-text", "lexicon", otherwise) from None
        names = [_name(place, label) for place, label in enumerate(labels)]
        self.n_best = options.n_best
        self._silence = names.index(_SILENCE) if _SILENCE in names else None
        ids = {name: place for place, name in enumerate(names)}
        pronunciations = read_pronunciations(Path(options.lexicon), ids)
        self._spellings: dict[str, list[tuple[int, ...]]] = {}
        for word, spelling in pronunciations:
            self._spellings.setdefault(word, []).append(tuple(ids[name] for name in spelling))
        end = [] if self._silence is None else [_SILENCE]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "lexicon.txt"
            lines = (" ".join([word, *spelling, *end]) + "\n" for word, spelling in pronunciations)
            path.write_text("".join(lines), encoding="utf-8")
            try:
                self._decoder: Any = ctc_decoder(
                    lexicon=str(path),
                    tokens=names,
                    lm=options.lm,
                    nbest=options.n_best,
                    beam_size=options.beam_size,
                    beam_size_token=options.max_labels,
                    beam_threshold=options.beam_threshold,
                    # KenLM's logarithms are decimal there.
                    lm_weight=options.lm_weight * float(np.log(10.0)),
                    word_score=options.word_score,
                    log_add=True,
                    blank_token=names[BLANK_ID],
                    sil_token=_SILENCE if end else names[BLANK_ID],
                    unk_word="<unk>",
                )
            except (ImportError, RuntimeError) as error:
                raise LanguageModelError(str(options.lm), str(error).splitlines()[0], "pip install kenlm") from None

    def __call__(self, log_probs_BFV: Tensor, frame_lengths_B: Tensor) -> list[list[Found]]:
        """The best sequences of words of each utterance; an empty one where no word fits."""
        # What is forbidden altogether would make scores infinite.
        inputs_BFV = log_probs_BFV.float().clamp(min=-1e4).cpu()
        # The decoder ends words by silence, and texts do not end in a space: a last frame gives it for nothing.
        last_V = inputs_BFV.new_full(inputs_BFV.shape[2:], -1e4)
        last_V[[BLANK_ID, BLANK_ID if self._silence is None else self._silence]] = 0.0
        results = []
        for row, frames in enumerate(frame_lengths_B.tolist()):
            whole_FV = torch.cat([inputs_BFV[row, :frames], last_V[None]])
            found = self._decoder(whole_FV[None].contiguous(), torch.tensor([frames + 1]))[0] if frames else []
            best = sorted((self._found(one) for one in found), key=lambda one: -one.score)[: self.n_best]
            results.append(best or [Found([], [], 0.0, 0.0, words=())])
        return results

    def _found(self, hypothesis: Any) -> Found:
        """A hypothesis without the silence that stands around it, its words with their numbers of labels."""
        tokens, frames = hypothesis.tokens.tolist(), [max(0, t - 1) for t in hypothesis.timesteps.tolist()]
        quiet = BLANK_ID if self._silence is None else self._silence
        kept = [i for i, token in enumerate(tokens) if token != quiet]
        words = self._lengths([tokens[i] for i in kept], list(hypothesis.words))
        labels: list[int] = []
        times: list[int] = []
        spans: list[tuple[str, int]] = []
        at = 0
        for number, (word, length) in enumerate(words):
            if number and self._silence is not None:
                labels.append(self._silence)
                times.append(frames[kept[at]])
                spans[-1] = (spans[-1][0], spans[-1][1] + 1)
            labels += [tokens[i] for i in kept[at : at + length]]
            times += [frames[i] for i in kept[at : at + length]]
            spans.append((word, length))
            at += length
        return Found(labels, times, float(hypothesis.score), 0.0, words=tuple(spans))

    def _lengths(self, tokens: list[int], words: list[str]) -> list[tuple[str, int]]:
        """How many of the tokens spell each word."""
        # Places in the tokens that can be reached by the words so far, with the lengths that lead there.
        ways: dict[int, list[int]] = {0: []}
        for word in words:
            after: dict[int, list[int]] = {}
            for at, lengths in ways.items():
                for spelling in self._spellings.get(word, []):
                    if tuple(tokens[at : at + len(spelling)]) == spelling:
                        after.setdefault(at + len(spelling), [*lengths, len(spelling)])
            ways = after
        assert len(tokens) in ways, "the decoder's labels spell its words"
        return list(zip(words, ways[len(tokens)], strict=True))


def _name(place: int, label: str | None) -> str:
    """A label as a word of the lexicon's lines."""
    if label is None:
        return "<blank>" if place == BLANK_ID else f"<{place}>"
    return _SILENCE if label == " " else spelt(label)


def read_pronunciations(path: Path, ids: Mapping[str, int]) -> list[tuple[str, list[str]]]:
    """Words and how each is spelt in labels, a word as often as it has spellings.

    Args:
        path: of the lexicon (see `CtcLexicon`).
        ids: of labels, by name.

    Raises:
        LanguageModelError: there is no such file, it holds no word, or a word cannot be spelt.
    """
    if not path.is_file():
        raise LanguageModelError(str(path), "no such lexicon", _SHAPE)
    found: dict[tuple[str, tuple[str, ...]], None] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        word, *spelling = line.split()
        while spelling and spelling[-1] == _SILENCE:
            spelling.pop()
        names = spelling or list(word)
        unknown = [name for name in names if name not in ids]
        if unknown:
            what = f"{word!r} is spelt with {unknown[0]!r}, which is no label of this model"
            shown = " ".join(name for name in ids if not name.startswith("<"))[:60]
            raise LanguageModelError(f"{path}:{number}", what, f"the labels are {shown}")
        found[word, tuple(names)] = None
    if not found:
        raise LanguageModelError(str(path), "holds no word", _SHAPE)
    return [(word, list(names)) for word, names in found]
