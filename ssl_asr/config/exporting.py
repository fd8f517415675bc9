"""The configuration of the commands that move models to and from other programs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from ssl_asr.config.parts import Languages, ModelInput, Named, Scoring, Writing
from ssl_asr.errors import ConfigError, exists_already
from ssl_asr.textfiles import shown
from ssl_asr.types import Fraction, InputPath, OutputPath, PositiveInt

SIDECAR = "export.json"
"""File of an exported folder that says what was exported, and by which it is recognized."""

_HUB_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_OFFLINE = {"1", "on", "yes", "true"}


@dataclass(frozen=True, kw_only=True)
class ExportConfig(ModelInput, Languages, Scoring, Writing):
    """Write a model for another runtime, and compare its transcripts there with the transcripts here.

    LoRA adapters are merged. The folder gets its name when the transcripts agree. Otherwise it is kept beside, as
    OUTPUT_DIR.differs, and the exit code is 2.

    Attributes:
        model: Run directory, checkpoint file, ``backbone`` option, or name of a pretrained checkpoint. The key may be
            left out.
        to: Format, such as ``transformers``.
        quantization: Type of the weights, such as float16. null takes the format's default.
        output_dir: Folder of the exported model. A model card, README.md, and export.json are written with it.
        manifest: Utterances whose transcripts are compared: a path, a list of paths, or paths by name. By default the
            test manifests of the run, or else its dev manifest, if they still exist.
        max_utterances: Largest number of utterances that are compared, evenly spread over the manifests.
        max_change: Largest WER of the exported model's transcripts with the model's own as references. null is 0.01, or
            0.05 if the weights are quantized.
        root: Folder that all audio of manifests must lie in, symbolic links resolved. null reads any file that a
            manifest names.
        license: License of the exported weights for the model card, such as apache-2.0. null leaves it out.
        push: Name on the Hugging Face Hub, ORGANIZATION/NAME, to which the folder is uploaded.
        private: Make a new repository of ``push`` private.
        verbose: Show progress bars and tables.
    """

    section: ClassVar[str] = "Export"
    positional: ClassVar[tuple[str, ...]] = ("model",)
    flags: ClassVar[dict[str, str]] = {"-o": "output_dir", "--output": "output_dir"}

    to: str
    quantization: str | None = None
    output_dir: OutputPath
    manifest: Named = field(default_factory=dict)
    max_utterances: PositiveInt = 100
    max_change: Fraction | None = None
    root: InputPath | None = None
    license: str | None = None
    push: str | None = None
    private: bool = True
    verbose: bool = True

    def conflicts(self) -> Iterator[ConfigError]:
        """A folder that must not be replaced, and a name of the Hub that cannot be used."""
        yield from other_files(Path(self.output_dir), overwrite=self.overwrite, sign=SIDECAR)
        yield from other_files(Path(f"{self.output_dir}.differs"), overwrite=True, sign=SIDECAR)
        if self.push is None:
            return
        if _HUB_NAME.fullmatch(self.push) is None:
            yield ConfigError(
                "push", f"is {shown(self.push)}, expected ORGANIZATION/NAME", "write for example me/my-model"
            )
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in _OFFLINE:
            yield ConfigError(
                "push", "needs the Hugging Face Hub, and HF_HUB_OFFLINE is set", "unset it, or leave push out"
            )


@dataclass(frozen=True, kw_only=True)
class ImportConfig(Writing):
    """Convert a wav2vec 2.0 or HuBERT checkpoint of fairseq or SpeechBrain, to fine-tune it here.

    The folder is a pretrained encoder in transformers' layout: train it with backbone.source=OUTPUT_DIR. Nothing of the
    file is run.

    Attributes:
        source: A .pt file of fairseq, or the wav2vec2.ckpt of SpeechBrain. The key may be left out. Heads and the parts
            of pretraining are left out.
        output_dir: Folder of the converted model.
        normalize: Whether the model expects waveforms of zero mean and unit variance. null: exactly if its convolutions
            have layer norm, as in fairseq's published models.
    """

    section: ClassVar[str] = "Import"
    positional: ClassVar[tuple[str, ...]] = ("source",)
    flags: ClassVar[dict[str, str]] = {"-o": "output_dir", "--output": "output_dir"}

    source: InputPath
    output_dir: OutputPath
    normalize: bool | None = None

    def conflicts(self) -> Iterator[ConfigError]:
        """A folder that must not be replaced."""
        yield from other_files(Path(self.output_dir), overwrite=self.overwrite, sign="preprocessor_config.json")


def other_files(folder: Path, *, overwrite: bool, sign: str) -> Iterator[ConfigError]:
    """An error if a folder has files that a command would replace.

    Args:
        folder: Folder of the new files.
        overwrite: Whether the files of an earlier command may be replaced. Other files never are.
        sign: File by which those of an earlier command are recognized.
    """
    if not folder.is_dir():
        return
    if folder.resolve() in (Path.cwd(), *Path.cwd().parents):
        yield ConfigError("output_dir", f"is {folder}, the current folder or above it", "name a new folder in it")
        return
    if not any(folder.iterdir()):
        return
    if not (folder / sign).is_file():
        what = f"{folder} holds other files, which would be lost"
        yield ConfigError("output_dir", what, "choose another output_dir")
    elif not overwrite:
        yield exists_already(folder, "output_dir")
