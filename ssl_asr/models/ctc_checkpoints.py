"""Checkpoints that are fine-tuned with CTC already: their vocabulary and their last layer."""

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


@dataclass(frozen=True, slots=True)
class CtcVocabulary:
    """Rows of a checkpoint's last layer: the blank's, the unknown character's if it has one, and each character's."""

    blank: int
    unknown: int | None
    rows: dict[str, int]

    @property
    def characters(self) -> list[str]:
        """The alphabet, by row."""
        return sorted(self.rows, key=self.rows.__getitem__)


def is_ctc_checkpoint(folder: Path) -> bool:
    """Whether a checkpoint folder has a CTC head, by its config and vocabulary."""
    architectures = read_json(folder / "config.json").get("architectures") or [""]
    return str(architectures[0]).endswith("ForCTC") and (folder / "vocab.json").is_file()


def read_ctc_vocabulary(folder: Path, language: str | None = None) -> CtcVocabulary:
    """The vocabulary of a fine-tuned checkpoint, MMS's of a language, as characters of text.

    The word delimiter becomes a space. An alphabet in capitals only, as of LibriSpeech models, becomes small.

    Raises:
        CheckpointError: there is none, or its tokens are not characters.
    """
    if not is_ctc_checkpoint(folder):
        raise CheckpointError(str(folder), "is not fine-tuned with CTC: it has no head and no vocabulary to keep")
    ids = read_json(folder / "vocab.json")
    if any(isinstance(value, dict) for value in ids.values()):
        if language not in ids:
            what = f"has a vocabulary for each of {len(ids)} languages, and {language or 'none'} is asked for"
            near = did_you_mean(language or "", list(ids)) if len(ids) < 20 or language else "name one"
            raise CheckpointError(str(folder / "vocab.json"), what, f"backbone.adapter_language, or language: {near}")
        ids = ids[language]
    settings = {**read_json(folder / "special_tokens_map.json"), **read_json(folder / "tokenizer_config.json")}

    def named(key: str, default: str) -> str:
        token: Any = settings.get(key) or default
        return str(token["content"] if isinstance(token, dict) else token)

    pad, unknown = named("pad_token", "<pad>"), named("unk_token", "<unk>")
    delimiter = named("word_delimiter_token", "|")
    if pad not in ids:
        raise CheckpointError(str(folder / "vocab.json"), f"has no blank ({pad})")
    special = {pad, unknown, named("bos_token", "<s>"), named("eos_token", "</s>")}
    rows = {" " if token == delimiter else token: row for token, row in ids.items() if token not in special}
    if longer := [token for token in rows if len(token) != 1]:
        what = f"has tokens that are no characters: {', '.join(longer[:5])}"
        raise CheckpointError(str(folder / "vocab.json"), what, "train a new head")
    if not any(character.islower() for character in rows):
        rows = {character.lower(): row for character, row in rows.items()}
    return CtcVocabulary(ids[pad], ids.get(unknown), rows)


def _ctc_layer(backbone: Backbone, folder: Path) -> tuple[Tensor, Tensor]:
    """Weight and bias of a checkpoint's last layer."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCTC

    if backbone.adapter_language is not None:
        weights = load_file(
            language_adapter(backbone.source, folder, backbone.adapter_language, revision=backbone.revision)
        )
        return weights["lm_head.weight"], weights["lm_head.bias"]
    theirs: Any = load_pretrained(AutoModelForCTC, folder, ("masked_spec_embed",), {})
    return theirs.lm_head.weight, theirs.lm_head.bias


def copy_ctc_rows(backbone: Backbone, folder: Path, head: nn.Linear, characters: list[str]) -> int:
    """Copy the rows of the characters a fine-tuned checkpoint shares with ``characters``, and the blank's.

    Args:
        backbone, folder: the checkpoint's.
        head: from states to the blank, the unknown character and ``characters``; other rows stay as they are.
        characters: the alphabet of the new head.

    Returns:
        How many of ``characters`` have their row from the checkpoint.
    """
    vocabulary = read_ctc_vocabulary(folder, backbone.adapter_language)
    weight, bias = _ctc_layer(backbone, folder)
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
            # No frame of theirs was ever heard as unknown.
            head.bias[UNKNOWN_ID] = -1e4
    return len(shared)
