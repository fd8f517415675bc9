"""From a checkpoint, or from a pretrained name, to a module that transcribes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ssl_asr.build.parts import DescribedModel, PretrainedCheckpoint
from ssl_asr.config.folders import config_folder, option_names
from ssl_asr.config.found import backbone_sources
from ssl_asr.config.options import build_option, check_extensions, load_class
from ssl_asr.console import no_message
from ssl_asr.data.characters import CharTokenizer
from ssl_asr.data.tokenizer import restore_tokenizer
from ssl_asr.data.whisper_tokenizer import WhisperTokenizer
from ssl_asr.decoding.ctc import CtcGreedy
from ssl_asr.decoding.seq2seq import WhisperGreedy
from ssl_asr.errors import CheckpointError, closest
from ssl_asr.models.adapters import merge_adapters
from ssl_asr.models.checkpoints import Say, resolve_checkpoint
from ssl_asr.models.ctc_checkpoints import has_ctc_head
from ssl_asr.models.encoder import Backbone, SpeechEncoder
from ssl_asr.models.freezing import TrainAll
from ssl_asr.models.heads import NoHead, PretrainedHead
from ssl_asr.models.loading import backbone_class_for, backbone_folder
from ssl_asr.models.states import LastLayer
from ssl_asr.training.checkpoint_files import KEY
from ssl_asr.training.module import ASRModule
from ssl_asr.training.tasks import Ctc, DetectLanguage, ModelSource, ModuleParts, Seq2Seq
from ssl_asr.types import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Speech:
    """The language and task of a multilingual model, where the manifest names none.

    Attributes:
        language: Language code of any form or name, or None to detect it. For MMS, the language of the adapters.
        task: ``transcribe`` or ``translate``.
        detect: For which utterances the language is detected.
    """

    language: str | None = None
    task: str = "transcribe"
    detect: DetectLanguage = "missing"


# From a checkpoint -------------------------------------------------------------------------------------------


def restore_module(
    checkpoint: dict[str, Any],
    speech: Speech | None = None,
    *,
    extensions: Sequence[str] = (),
    where: str = "checkpoint",
) -> ASRModule:
    """The module of a checkpoint, from the checkpoint alone: no other file, no network.

    A checkpoint of trained weights only is the exception: it needs the pretrained weights that it was trained from.

    Args:
        checkpoint: As `ssl_asr.training.checkpointing.read_checkpoint` returns it.
        speech: Language and task, or None for the defaults of `Speech`.
        extensions: Packages besides this one whose classes the checkpoint may use.
        where: Name of the checkpoint, for errors.

    Raises:
        ConfigError: The checkpoint uses classes of packages that are not in ``extensions``.
    """
    saved, speech = checkpoint[KEY], speech or Speech()
    config = saved["config"]
    check_extensions(config.get("extensions", []), extensions, where)
    option = partial(_option, config, extensions)
    policy = option("freeze_policy")
    parts = ModuleParts(
        source=_source(saved, extensions, from_pretrained=policy.only_trained),
        tokenizer=saved_tokenizer(saved, speech.language, extensions=extensions),
        decoder=option("decoder"),
        policy=policy,
        states=option("states"),
        head=option("head"),
        normalizers={},
        detect_language=speech.detect,
    )
    module: ASRModule = option("task").build(parts)
    module.downmix = config["data"]["downmix"]
    module.run_config = config
    module.load_for_inference(checkpoint)
    merge_adapters(module)
    return module


def _option(config: dict[str, Any], extensions: Sequence[str], key: str) -> Any:
    """An option of a checkpoint's config, checked before any class is called."""
    return build_option(config[key], f"{key} of the checkpoint", extensions=extensions)


def _source(saved: dict[str, Any], extensions: Sequence[str], *, from_pretrained: bool) -> ModelSource:
    if not from_pretrained:
        return DescribedModel(description=saved["model"], load_class=partial(_trusted_class, extensions))
    backbone: Backbone = _option(saved["config"], extensions, "backbone")
    return PretrainedCheckpoint.of(backbone, backbone_folder(backbone, no_message))


def _trusted_class(extensions: Sequence[str], path: str) -> type:
    return load_class(path, "checkpoint", extensions=extensions)


def saved_tokenizer(saved: dict[str, Any], language: str | None, *, extensions: Sequence[str]) -> Tokenizer:
    """The tokenizer of a checkpoint, with another default language if one is given and the tokenizer has one."""
    state = dict(saved["tokenizer"])
    if "language" in state and language is not None:
        state["language"] = language
    return restore_tokenizer(state, partial(_trusted_class, extensions))


# From a pretrained name --------------------------------------------------------------------------------------


def pretrained_checkpoint(name: str, language: str | None, say: Say) -> PretrainedCheckpoint:
    """A pretrained checkpoint as it is published, by the name of a backbone option, a Hub id or a local folder.

    Raises:
        CheckpointError: There is no such checkpoint, or no backbone option loads it.
    """
    option = config_folder() / "backbone" / f"{name}.yaml"
    source = _source_of(option) if option.is_file() else name
    try:
        folder = resolve_checkpoint(source, say=say)
    except CheckpointError as error:
        near = closest(name, [*option_names("backbone"), *backbone_sources()])
        if near is None or near == name:
            raise
        raise CheckpointError(error.where, error.what, f"did you mean '{near}'? Otherwise {error.remedy}") from None
    backbone = backbone_class_for(folder, _backbone_classes()).pretrained(source, language)
    return PretrainedCheckpoint.of(backbone, folder, say)


def _source_of(option: Path) -> str:
    node: Any = OmegaConf.load(option)
    return str(node.get("backbone", node)["source"])


def _backbone_classes() -> Iterator[type[Backbone]]:
    """The classes that the backbone options of ``conf/`` name, each once."""
    paths = sorted((config_folder() / "backbone").rglob("*.yaml"))
    nodes: list[Any] = [OmegaConf.load(path) for path in paths]
    targets = [str(node["_target_"]) for node in nodes if node.get("_target_") is not None]
    for target in dict.fromkeys(targets):
        yield load_class(target, "backbone")


def pretrained_module(name: str, speech: Speech, say: Say) -> ASRModule:
    """A module that transcribes with a pretrained checkpoint as it is.

    Raises:
        CheckpointError: There is no such checkpoint, or it cannot transcribe without training.
    """
    source = pretrained_checkpoint(name, speech.language, say)
    parts = ModuleParts(
        source=source,
        tokenizer=CharTokenizer(characters="a"),
        decoder=CtcGreedy(),
        policy=TrainAll(),
        states=LastLayer(stride=1),
        head=NoHead(),
        normalizers={},
        detect_language=speech.detect,
    )
    if "seq2seq" in source.backbone.tasks:
        tokenizer = WhisperTokenizer.from_folder(
            source.folder, language=speech.language, task=speech.task, normalizer="none"
        )
        decoder = WhisperGreedy(suppress=True, max_tokens_per_s=None)
        task = Seq2Seq(label_smoothing=0.0, ctc_weight=0.0, ctc_lr_scale=1.0)
        return task.build(replace(parts, tokenizer=tokenizer, decoder=decoder))
    if not has_ctc_head(source.folder):
        what = "this checkpoint has no decoder and no CTC head, so it cannot transcribe"
        raise CheckpointError(
            f"model={name}", what, f"fine-tune it first: ssl-asr train backbone.source={name} task=ctc"
        )
    characters = CharTokenizer(characters=source.characters(), normalizer="lower")
    return Ctc().build(replace(parts, tokenizer=characters, head=PretrainedHead(dropout=0.0)))


def pretrained_encoder(name: str, language: str | None, say: Say) -> SpeechEncoder:
    """The encoder of a pretrained checkpoint."""
    return pretrained_checkpoint(name, language, say).encoder()
