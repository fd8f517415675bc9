"""Language models from files: ARPA, KenLM binaries, and causal models of transformers."""

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

from ssl_asr.decoding.arpa import is_mark
from ssl_asr.decoding.neural_lm import NeuralLM
from ssl_asr.decoding.ngram import NGram
from ssl_asr.decoding.word_model import WordModel
from ssl_asr.errors import LanguageModelError, optional_import
from ssl_asr.textfiles import is_hub_name

_KENLM_MAGIC = b"mmap lm http://kheafield.com/code"


class KenLM(WordModel[Any]):
    """A KenLM binary, read by the ``kenlm`` package. It does not list its words.

    Args:
        path: Path of the binary.

    Raises:
        ConfigError: The package is not installed.
        LanguageModelError: The file is damaged.
    """

    def __init__(self, path: Path) -> None:
        with optional_import(f"{path} (a KenLM binary)", "kenlm", "kenlm", "the ARPA file"):
            import kenlm
        self._kenlm: Any = kenlm
        try:
            self._model = kenlm.Model(str(path))
        except (OSError, RuntimeError) as error:
            what = f"cannot be read by KenLM: {str(error).splitlines()[-1]}"
            raise LanguageModelError(str(path), what, "build it again, or give the ARPA file") from None

    @property
    def begin(self) -> Any:
        """State at the start of a sentence."""
        state = self._kenlm.State()
        self._model.BeginSentenceWrite(state)
        return state

    def score(self, state: Any, word: str) -> tuple[float, Any]:
        """Log-probability of a word after a state, and the next state."""
        after = self._kenlm.State()
        return self._model.BaseScore(state, word, after) * math.log(10.0), after

    def end(self, state: Any) -> float:
        """Log-probability of the end of the sentence."""
        return self.score(state, "</s>")[0]

    def has_word(self, word: str) -> bool:
        """Whether a word is in the vocabulary. Marks are not."""
        return word in self._model and not is_mark(word)


def is_kenlm_binary(path: Path) -> bool:
    """Whether a file is a KenLM binary."""
    with path.open("rb") as file:
        return file.read(len(_KENLM_MAGIC)) == _KENLM_MAGIC


def read_language_model(source: str | Path) -> NGram | KenLM | NeuralLM:
    """Read an ARPA file (gzipped or not), a KenLM binary, or a causal language model of transformers.

    The two models that were read last are kept in memory. A file that has changed is read again.

    Args:
        source: File, folder, or name on the Hugging Face Hub.

    Raises:
        LanguageModelError: There is no such model, or it cannot be read.
        ConfigError: It is a KenLM binary, and kenlm is not installed.
    """
    path = Path(source)
    if path.is_file():
        return _read(str(path), path.stat().st_mtime_ns)
    if path.is_dir() or is_hub_name(str(source)):
        return _read(str(source), 0)
    raise LanguageModelError(str(source), "no such language model", "make one with ssl-asr lm")


@lru_cache(maxsize=2)
def _read(source: str, _modified_ns: int) -> NGram | KenLM | NeuralLM:
    path = Path(source)
    if not path.is_file():
        return NeuralLM.load(source)
    return KenLM(path) if is_kenlm_binary(path) else NGram.from_arpa(path)
