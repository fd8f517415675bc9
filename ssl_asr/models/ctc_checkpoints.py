"""Checkpoints that are fine-tuned with CTC: their vocabulary and their output layer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_asr.console import shortened
from ssl_asr.errors import CheckpointError, did_you_mean
from ssl_asr.models.checkpoints import language_adapter, read_json
from ssl_asr.models.encoder import Backbone
from ssl_asr.models.loading import load_pretrained, read_weights
from ssl_asr.scripts import is_unspaced
from ssl_asr.textfiles import from_json, shown
from ssl_asr.types import BLANK_ID, FIRST_LABEL_ID, UNKNOWN_ID

# The number of languages that an error message can list.
_LISTED_LANGUAGES = 20
# No vocabulary of characters has as many tokens.
_MOST = 1_000_000
_GET = "get the checkpoint again"


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
    _check_ids(path, ids, more=_added_ids(folder))
    rows = _character_rows(path, ids, specials)
    _check_blank(folder, ids, specials.blank)
    _check_delimiter(path, rows, specials.delimiter)
    return CtcVocabulary(ids[specials.blank], ids.get(specials.unknown), rows)


def _added_ids(folder: Path) -> set[int]:
    """Ids of tokens that are not in vocab.json but have a row of their own."""
    found = set(read_json(folder / "added_tokens.json").values())
    decoder = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
    return {int(row) for row in (*found, *decoder) if str(row).isdecimal()}


def _check_ids(path: Path, ids: dict[str, int], *, more: set[int]) -> None:
    """Each token has an id of its own, and the ids count the rows of the output layer."""
    tokens: dict[int, list[str]] = {}
    for token, row in ids.items():
        if type(row) is not int or not 0 <= row < _MOST:
            what = f"token {shown(token)} has the id {shown(row)}, expected a number from 0 to {_MOST - 1:,}"
            raise CheckpointError(str(path), what, _GET)
        tokens.setdefault(row, []).append(token)
    for row, same in tokens.items():
        if len(same) > 1:
            what = f"tokens {' and '.join(map(shown, same[:5]))} have the same id {row}"
            raise CheckpointError(str(path), what, _GET)
    lacking = sorted({*range(max(tokens, default=0))} - tokens.keys() - more)
    if lacking:
        names = shortened([str(row) for row in lacking], shown=5)
        raise CheckpointError(str(path), f"no token has the id {names}. The largest id is {max(tokens)}", _GET)


def _check_blank(folder: Path, ids: dict[str, int], blank: str) -> None:
    """The blank of CTC is the padding token of the tokenizer, and that of the model."""
    path = folder / "vocab.json"
    if blank not in ids:
        raise CheckpointError(str(path), f"has no blank ({blank})", _GET)
    used = read_json(folder / "config.json").get("pad_token_id")
    if used is not None and used != ids[blank]:
        token = next((shown(token) for token, row in ids.items() if row == used), "no token")
        what = f"the blank is {used} ({token}) by pad_token_id in config.json, and {ids[blank]} ({blank}) by vocab.json"
        raise CheckpointError(str(path), what, "correct the one that differs from the training of the checkpoint")


def _check_delimiter(path: Path, rows: dict[str, int], delimiter: str) -> None:
    """A model that writes a script with spaces has a token for the space."""
    if " " not in rows and not any(map(is_unspaced, rows)):
        what = f"has no word delimiter ({delimiter}), so that the model would write texts without spaces"
        raise CheckpointError(str(path), what, "set word_delimiter_token in tokenizer_config.json, or add the token")


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
    ids: dict[str, Any] = from_json(path.read_bytes(), str(path), error=CheckpointError, remedy=_GET)
    if not isinstance(ids, dict):
        raise CheckpointError(str(path), "is not a JSON object", _GET)
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


def _check_rows(vocabulary: CtcVocabulary, folder: Path, count: int) -> None:
    """Each token of a vocabulary has a row of the output layer."""
    token, row = max(vocabulary.rows.items(), key=lambda pair: pair[1], default=("the blank", vocabulary.blank))
    if max(row, vocabulary.blank) >= count:
        what = f"token {shown(token)} has the id {row}, and the output layer has {count} rows"
        raise CheckpointError(str(folder / "vocab.json"), what, "check that vocab.json and the weights belong together")


def _output_layer(backbone: Backbone, folder: Path) -> tuple[Tensor, Tensor]:
    """Weight and bias of the output layer of a checkpoint."""
    from transformers import AutoModelForCTC

    if backbone.adapter_language is not None:
        weights = read_weights(
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
    _check_rows(vocabulary, folder, len(weight))
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
