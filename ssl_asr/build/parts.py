"""Where a module's pretrained model comes from. See `ssl_asr.training.tasks.ModelSource`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from ssl_asr.console import no_message
from ssl_asr.data.characters import CharTokenizer
from ssl_asr.data.languages import given_language, match_language, nearest_language
from ssl_asr.errors import CheckpointError, ConfigError
from ssl_asr.models.checkpoints import Say
from ssl_asr.models.ctc_checkpoints import adapter_languages, copy_ctc_rows, read_ctc_vocabulary
from ssl_asr.models.encoder import Backbone, SpeechEncoder
from ssl_asr.models.heads import last_layer
from ssl_asr.models.loading import rebuild
from ssl_asr.models.whisper import WhisperBackbone, WhisperSeq2Seq
from ssl_asr.types import LabelTokenizer


@dataclass(frozen=True, kw_only=True)
class PretrainedCheckpoint:
    """A pretrained checkpoint in a local folder: a `ModelSource` and a `PretrainedVocabulary`.

    Attributes:
        backbone: The ``backbone`` option.
        folder: Local folder in transformers' layout.
        say: Called with messages for the user.
    """

    backbone: Backbone
    folder: Path
    say: Say = no_message

    @classmethod
    def of(cls, backbone: Backbone, folder: Path, say: Say = no_message) -> "PretrainedCheckpoint":
        """A checkpoint whose ``adapter_language``, a code of any form, is the name that the checkpoint uses.

        Raises:
            CheckpointError: The checkpoint has adapters for languages, but not for this one.
        """
        if backbone.adapter_language is not None:
            options: Any = backbone
            language = _adapter_name(backbone.adapter_language, folder)
            backbone = replace(options, adapter_language=language)
        return cls(backbone=backbone, folder=folder, say=say)

    def encoder(self) -> SpeechEncoder:
        """The pretrained encoder."""
        return self.backbone.load_encoder(self.folder)

    def seq2seq(self) -> WhisperSeq2Seq:
        """The pretrained encoder and decoder."""
        return cast(WhisperBackbone, self.backbone).load_seq2seq(self.folder)

    def characters(self) -> list[str]:
        """The alphabet of a checkpoint that is fine-tuned with CTC."""
        return read_ctc_vocabulary(self.folder, self.backbone.adapter_language).characters

    def copy_head(self, head: nn.Module, tokenizer: LabelTokenizer) -> None:
        """Copy the rows of the characters that the checkpoint shares with the tokenizer.

        Raises:
            ConfigError: The tokenizer's labels are not characters.
        """
        if not isinstance(tokenizer, CharTokenizer):
            raise ConfigError(
                "tokenizer",
                "the pretrained head has characters as labels",
                "use tokenizer=pretrained, or tokenizer=char",
            )
        characters = tokenizer.characters
        kept = copy_ctc_rows(self.backbone, self.folder, last_layer(head), characters)
        self.say(f"head: {kept} of {len(characters)} characters have the checkpoint's weights")


def _adapter_name(language: str, folder: Path) -> str | None:
    """The checkpoint's name of a language. The language itself if the checkpoint lists no names."""
    names = adapter_languages(folder)
    if not names or given_language(language) is None:
        return given_language(language)
    name = match_language(language, names)
    if name is None:
        what = f"got language {language}, expected one of the {len(names)} languages of the checkpoint"
        near = nearest_language(language, names)
        raise CheckpointError(str(folder), what, f"set backbone.adapter_language or language: {near}")
    return name


@dataclass(frozen=True, kw_only=True)
class DescribedModel:
    """An untrained twin of a checkpoint's pretrained model; the checkpoint's weights are loaded later.

    Attributes:
        description: `ASRModule.description` of the model.
        load_class: Maps an import path to a class. It decides which packages are trusted.
    """

    description: dict[str, Any]
    load_class: Callable[[str], type]

    def encoder(self) -> SpeechEncoder:
        """The untrained encoder."""
        return rebuild(self.description, self.load_class)

    def seq2seq(self) -> WhisperSeq2Seq:
        """The untrained encoder and decoder."""
        return WhisperSeq2Seq.from_description(self.description)

    def copy_head(self, head: nn.Module, tokenizer: LabelTokenizer) -> None:
        """Does nothing: the weights of the head are in the checkpoint."""
