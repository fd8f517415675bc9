"""Checkpoints that are fine-tuned with CTC: their vocabulary and their output layer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_asr.errors import CheckpointError, did_you_mean
from ssl_asr.models.checkpoints import language_adapter, read_json
from ssl_asr.models.encoder import Backbone
from ssl_asr.models.loading import load_pretrained
from ssl_asr.types import BLANK_ID, FIRST_LABEL_ID, UNKNOWN_ID

# The number of languages that an error message can list.
_LISTED_LANGUAGES = 20


@dataclass(frozen=True, slots=True)
class CtcVocabulary:
    """Rows of the output layer of a fine-tuned checkpoint.

    Attributes:
        blank: int, row of the blank.
        unknown: int, row of the unknown character. None if the checkpoint has none.
        rows: dict, row of each character.
    """

    blank: int
    unknown: int | None
    rows: dict[str, int]

    @property
    def characters(self) -> list[str]:
        """The alphabet in the order of the rows."""
        return sorted(self.rows, key=self.rows.__getitem__)


@dataclass(frozen=True, slots=True)
class _Specials:
    """Spelling of the special tokens of a checkpoint."""

    blank: str
    unknown: str
    delimiter: str
    others: frozenset[str]


def has_ctc_head(folder: Path) -> bool:
    """Whether a checkpoint folder has an output layer trained with CTC, by its config."""
    architectures = read_json(folder / "config.json").get("architectures") or [""]
    return str(architectures[0]).endswith("ForCTC")


def read_ctc_vocabulary(folder: Path, language: str | None = None) -> CtcVocabulary:
    """Reads the vocabulary of a fine-tuned checkpoint.

    The word delimiter becomes a space. An alphabet without lower-case letters, as in LibriSpeech models, becomes lower
    case.

    Args:
        folder: Path, checkpoint folder.
        language: str, language to read, ISO 639-3, if the checkpoint has one vocabulary per language (MMS). None
            otherwise.

    Raises:
        CheckpointError: The checkpoint is not fine-tuned with CTC, or its tokens are not characters.
    """
    _check_fine_tuned(folder)
    path = folder / "vocab.json"
    ids = _ids_of_language(path, language)
    specials = _read_specials(folder)
    if specials.blank not in ids:
        raise CheckpointError(str(path), f"has no blank ({specials.blank})")
    rows = _character_rows(path, ids, specials)
    return CtcVocabulary(ids[specials.blank], ids.get(specials.unknown), rows)


def _check_fine_tuned(folder: Path) -> None:
    if not has_ctc_head(folder):
        what = "is not fine-tuned with CTC, so it has no output layer and no vocabulary"
        raise CheckpointError(str(folder), what, "fine-tune it with head=linear and tokenizer=char")
    if not (folder / "vocab.json").is_file():
        what = "has no vocab.json: the tokens of its output layer are not characters"
        raise CheckpointError(str(folder), what, "fine-tune it with head=linear and tokenizer=char or bpe")


def adapter_languages(folder: Path) -> list[str]:
    """Names of the languages that a checkpoint has adapters for (MMS). Empty if it has no such adapters."""
    ids = read_json(folder / "vocab.json") if (folder / "vocab.json").is_file() else {}
    named = [name for name, value in ids.items() if isinstance(value, dict)]
    files = [path.name.split(".")[1] for path in folder.glob("adapter.*.safetensors")]
    return sorted({*named, *files})


def _ids_of_language(path: Path, language: str | None) -> dict[str, int]:
    """Row of each token, in ``language`` if the file has one vocabulary per language."""
    ids = read_json(path)
    if not any(isinstance(value, dict) for value in ids.values()):
        return ids
    if language not in ids:
        what = f"got language {language}, expected one of the {len(ids)} languages of the checkpoint"
        few = len(ids) < _LISTED_LANGUAGES or language is not None
        near = did_you_mean(language or "", list(ids)) if few else "use an ISO 639-3 code"
        raise CheckpointError(str(path), what, f"set backbone.adapter_language or language: {near}")
    own: dict[str, int] = ids[language]
    return own


def _read_specials(folder: Path) -> _Specials:
    settings = {**read_json(folder / "special_tokens_map.json"), **read_json(folder / "tokenizer_config.json")}

    def spelled(key: str, default: str) -> str:
        token: Any = settings.get(key) or default
        return str(token["content"] if isinstance(token, dict) else token)

    return _Specials(
        blank=spelled("pad_token", "<pad>"),
        unknown=spelled("unk_token", "<unk>"),
        delimiter=spelled("word_delimiter_token", "|"),
        others=frozenset({spelled("bos_token", "<s>"), spelled("eos_token", "</s>")}),
    )


def _character_rows(path: Path, ids: dict[str, int], specials: _Specials) -> dict[str, int]:
    """Row of each character of text."""
    special = {specials.blank, specials.unknown, *specials.others}
    rows = {" " if token == specials.delimiter else token: row for token, row in ids.items() if token not in special}
    if longer := [token for token in rows if len(token) != 1]:
        what = f"has tokens that are not single characters: {', '.join(longer[:5])}"
        raise CheckpointError(str(path), what, "use head=linear to train a new output layer")
    if not any(character.islower() for character in rows):
        rows = {character.lower(): row for character, row in rows.items()}
    return rows


def _output_layer(backbone: Backbone, folder: Path) -> tuple[Tensor, Tensor]:
    """Weight and bias of the output layer of a checkpoint."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCTC

    if backbone.adapter_language is not None:
        weights = load_file(
            language_adapter(backbone.source, folder, backbone.adapter_language, revision=backbone.revision)
        )
        return weights["lm_head.weight"], weights["lm_head.bias"]
    model: Any = load_pretrained(AutoModelForCTC, folder, ("masked_spec_embed",), {})
    return model.lm_head.weight, model.lm_head.bias


def copy_ctc_rows(backbone: Backbone, folder: Path, head: nn.Linear, characters: list[str]) -> int:
    """Copies rows of a checkpoint's output layer into a new output layer.

    Copies the rows of the blank, of the unknown character, and of each character in both alphabets. Other rows of
    ``head`` do not change. If the checkpoint has no unknown character, the new layer never predicts it at the start.

    Args:
        backbone: Backbone option of the checkpoint.
        folder: Path, checkpoint folder.
        head: nn.Linear, output layer with rows for the blank, the unknown character and ``characters``. It is changed
            in place.
        characters: list of str, alphabet of the new layer.

    Returns:
        The number of ``characters`` with a row from the checkpoint.
    """
    vocabulary = read_ctc_vocabulary(folder, backbone.adapter_language)
    weight, bias = _output_layer(backbone, folder)
    pairs = {BLANK_ID: vocabulary.blank}
    if vocabulary.unknown is not None:
        pairs[UNKNOWN_ID] = vocabulary.unknown
    shared = {i: vocabulary.rows[c] for i, c in enumerate(characters, start=FIRST_LABEL_ID) if c in vocabulary.rows}
    pairs |= shared
    new, old = torch.tensor(list(pairs)), torch.tensor(list(pairs.values()))
    with torch.no_grad():
        head.weight[new] = weight[old]
        head.bias[new] = bias[old]
        if vocabulary.unknown is None:
            head.bias[UNKNOWN_ID] = -1e4
    return len(shared)
