"""From a resolved config to objects: the only caller of ``instantiate``."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import lightning as L
from hydra.utils import get_class, instantiate
from rich.console import Console
from torch import nn

from ssl_asr.config.nodes import config_folder, option_node
from ssl_asr.config.options import build_option
from ssl_asr.data.characters import CharTokenizer
from ssl_asr.data.filters import Limits
from ssl_asr.data.manifest import Manifest
from ssl_asr.data.module import ASRDataModule, DataConfig, read_manifests
from ssl_asr.data.text import get_normalizers
from ssl_asr.data.tokenizer import TokenizerOption, restore_tokenizer
from ssl_asr.data.whisper_tokenizer import WhisperTokenizer
from ssl_asr.decoding.alignment import Measure
from ssl_asr.decoding.ctc import CtcGreedy
from ssl_asr.decoding.seq2seq import AttentionBeam, AttentionGreedy, WhisperBeam, WhisperGreedy
from ssl_asr.errors import CheckpointError, ConfigError
from ssl_asr.models.adapters import merge_adapters
from ssl_asr.models.checkpoints import resolve_checkpoint
from ssl_asr.models.compiling import compile_layers
from ssl_asr.models.ctc_checkpoints import copy_ctc_rows, is_ctc_checkpoint, read_ctc_vocabulary
from ssl_asr.models.encoder import Backbone, SpeechEncoder, Window, one_frame_length
from ssl_asr.models.freezing import FreezePolicy, TrainAll
from ssl_asr.models.heads import PretrainedHead, last_layer
from ssl_asr.models.loading import backbone_class_for, backbone_folder, rebuild
from ssl_asr.models.spec_augment import SpecAugment
from ssl_asr.models.states import LastLayer
from ssl_asr.models.whisper import WhisperSeq2Seq
from ssl_asr.textfiles import written_whole
from ssl_asr.training.averaging import EMA
from ssl_asr.training.callbacks import Samples, Throughput, checkpointing
from ssl_asr.training.checkpointing import KEY, RandomStates, SelfDescription, read_checkpoint
from ssl_asr.training.ctc import CTCModule
from ssl_asr.training.joint import JointModule
from ssl_asr.training.module import ASRModule, OptimConfig
from ssl_asr.training.schedulers import total_updates
from ssl_asr.training.seq2seq import AuxiliaryCtc, Seq2SeqModule
from ssl_asr.training.state_cache import DiskStateCache, StateCache, top_layer
from ssl_asr.training.tasks import Joint, Seq2Seq
from ssl_asr.training.trainer import TrainerConfig, make_trainer
from ssl_asr.types import SAMPLE_RATE, LabelTokenizer, Tokenizer

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """Everything a training run needs, ready to go."""

    module: ASRModule
    data: ASRDataModule
    trainer: L.Trainer
    config: dict[str, Any]


@dataclass(frozen=True, slots=True)
class CheckpointVocabulary:
    """The vocabulary of a pretrained checkpoint. Implements `ssl_asr.data.tokenizer.PretrainedVocabulary`."""

    folder: Path
    language: str | None

    def characters(self) -> list[str]:
        """The alphabet of a checkpoint that is fine-tuned with CTC."""
        return read_ctc_vocabulary(self.folder, self.language).characters


def _own_class(path: str) -> type:
    """The class at a path inside this package. A checkpoint may not name classes of other packages."""
    if not path.startswith("ssl_asr."):
        raise CheckpointError("tokenizer", f"class {path} is outside ssl_asr", "use a checkpoint made by ssl_asr")
    found: type = get_class(path)
    return found


def encoder_of(module: ASRModule) -> Any:
    """The pretrained encoder of a task's module."""
    return module.model.encoder if isinstance(module, Seq2SeqModule) else cast(CTCModule, module).encoder


def encoder_limits(encoder: SpeechEncoder) -> Limits:
    """The durations an encoder can take."""
    return Limits(encoder.min_samples / SAMPLE_RATE, encoder.max_s, "Whisper's window")


def make_limits(module: ASRModule, config: DataConfig | None) -> Limits:
    """What the model can take, with the user's own limits laid over it."""
    limits = encoder_limits(encoder_of(module))
    if config is not None:
        limits = replace(limits, min_s=max(limits.min_s, config.min_s))
        if config.max_s is not None and (limits.max_s is None or config.max_s < limits.max_s):
            limits = replace(limits, max_s=config.max_s, max_s_why="data.max_s")
    if isinstance(module, Seq2SeqModule):
        prompt = 4 if module.tokenizer.is_multilingual else 2
        return replace(limits, max_tokens=module.model.max_tokens, prompt_tokens=prompt)
    if isinstance(module, JointModule):
        limits = replace(limits, max_tokens=module.head.decoder.max_tokens, prompt_tokens=1)
    return replace(limits, ctc_frames=lambda samples: one_frame_length(cast(CTCModule, module), samples))


def _make_module(config: dict[str, Any], train: Manifest, say: Say) -> ASRModule:
    backbone = instantiate(config["backbone"])
    folder = backbone_folder(backbone, say)
    option: TokenizerOption = instantiate(config["tokenizer"])
    vocabulary = CheckpointVocabulary(folder, getattr(backbone, "adapter_language", None))
    tokenizer = option.build(train=train, checkpoint=vocabulary)
    trainer: TrainerConfig = instantiate(config["trainer"])
    shared: dict[str, Any] = {
        "tokenizer": tokenizer,
        "policy": instantiate(config["freeze_policy"]),
        "normalizers": get_normalizers(config["normalizers"]),
        "optim": OptimConfig(
            optimizers={side: instantiate(node) for side, node in config["optimizers"].items()},
            schedulers={side: instantiate(node) for side, node in config["schedulers"].items()},
            accumulate=trainer.accumulate_grad_batches,
            clip_norm=trainer.gradient_clip_val,
            max_nonfinite=trainer.max_nonfinite,
        ),
    }
    task, policy = instantiate(config["task"]), shared["policy"]
    model = backbone.load_seq2seq(folder) if isinstance(task, Seq2Seq) else None
    encoder: SpeechEncoder = backbone.load_encoder(folder) if model is None else model.encoder
    augment = instantiate(config["augment"])
    if isinstance(augment, SpecAugment):
        encoder.mask_with(augment)
    if model is not None:
        assert isinstance(tokenizer, WhisperTokenizer)
        policy.prepare(encoder, model.net)
        return Seq2SeqModule(
            model=model,
            decoder=instantiate(config["decoder"]),
            label_smoothing=task.label_smoothing,
            auxiliary=_auxiliary(task, encoder, train),
            **shared,
        )
    states = instantiate(config["states"]).build(encoder)
    policy.prepare(encoder, None)
    head_options = instantiate(config["head"])
    head = head_options.build(dim=states.dim, vocab_size=tokenizer.vocab_size)
    if isinstance(head_options, PretrainedHead):
        say(_keep_head(head, states, tokenizer, backbone, folder))
    return _on_states(task, encoder, states, head, instantiate(config["decoder"]), shared)


def _auxiliary(task: Seq2Seq, encoder: Any, train: Manifest) -> AuxiliaryCtc | None:
    if task.ctc_weight == 0:
        return None
    tokenizer = CharTokenizer.from_texts(train, normalizer="lower")
    layer = nn.Linear(encoder.dim, tokenizer.vocab_size)
    return AuxiliaryCtc(layer=layer, tokenizer=tokenizer, weight=task.ctc_weight, lr_scale=task.ctc_lr_scale)


def _on_states(
    task: Any, encoder: Any, states: Any, head: Any, decoder: Any, shared: dict[str, Any]
) -> CTCModule | JointModule:
    """The module of a task whose head reads an encoder's states."""
    if isinstance(task, Joint):
        return JointModule(encoder=encoder, states=states, head=head, decoder=decoder, task=task, **shared)
    return CTCModule(encoder=encoder, states=states, head=head, decoder=decoder, **shared)


def _keep_head(head: Any, states: Any, tokenizer: Tokenizer, backbone: Backbone, folder: Path) -> str:
    """Copy the rows of a fine-tuned checkpoint into a head, and say how many."""
    layer = last_layer(head)
    if not isinstance(tokenizer, CharTokenizer):
        raise ConfigError("tokenizer", "the pretrained head is one of characters", "tokenizer=pretrained or char")
    if states.reads_layers or states.stride != 1:
        raise ConfigError("states", "the pretrained head reads the last states as they are", "states=last")
    kept = copy_ctc_rows(backbone, folder, layer, tokenizer.characters)
    return f"head: {kept} of {len(tokenizer.characters)} characters are the checkpoint's own"


def describe_model(module: ASRModule) -> dict[str, Any]:
    """Plain data from which `restore_module` makes the model's twin."""
    if isinstance(module, Seq2SeqModule):
        return {"task": "seq2seq", **module.model.description()}
    return {"task": "ctc", **encoder_of(module).description()}


def build_training(config: dict[str, Any], folder: Path, console: Console | None) -> TrainingRun:
    """Everything of a training run, wrong input raised before the weights are touched.

    Args:
        config: as `ssl_asr.config.resolve` gives it.
        folder: the run's.
        console: where tables go; None prints nothing.
    """
    say: Say = console.print if console is not None else (lambda _: None)
    L.seed_everything(config["seed"], workers=True, verbose=False)
    data_config: DataConfig = instantiate(config["data"])
    manifests = read_manifests(data_config)
    module = _make_module(config, manifests["train"], say)
    data = ASRDataModule(
        config=data_config,
        manifests=manifests,
        tokenizer=module.tokenizer,
        limits=make_limits(module, data_config),
        seed=config["seed"],
        console=console,
    )
    data.select()
    module.test_names = data.test_names
    state_cache = instantiate(config["state_cache"])
    if isinstance(state_cache, DiskStateCache):
        _cache_states(state_cache, module, data, say)
    trainer_config: TrainerConfig = instantiate(config["trainer"])
    name = config["run_name"] or folder.name
    loggers, logger_callbacks = instantiate(config["logger"]).build(folder=folder, name=name, config=config)
    has_dev = data_config.dev is not None
    callbacks = [
        SelfDescription(config=config, description=describe_model(module)),
        RandomStates(),
        Throughput(),
        Samples(folder=folder, console=console, count=config["samples"]),
        *logger_callbacks,
        *([] if trainer_config.ema_decay is None else [EMA(trainer_config.ema_decay)]),
        *checkpointing(
            folder / "checkpoints",
            monitor=trainer_config.monitor if has_dev else None,
            every_n_updates=trainer_config.checkpoint_every_n_updates,
            average_best=trainer_config.average_best,
        ),
    ]
    if trainer_config.compile is not None:
        compile_layers(module, trainer_config.compile)
    trainer = make_trainer(
        trainer_config,
        folder=folder,
        loggers=loggers,
        callbacks=callbacks,
        verbose=console is not None,
        thaws=module.policy.thaws,
    )
    batches = data.batches_per_epoch(trainer_config.max_epochs, trainer.world_size)
    module.total_updates = total_updates(batches, trainer_config.accumulate_grad_batches, trainer_config.max_steps)
    return TrainingRun(module, data, trainer, config)


def _cache_states(options: DiskStateCache, module: ASRModule, data: ASRDataModule, say: Say) -> None:
    encoder = encoder_of(module)
    top = top_layer(encoder)
    module.state_cache = StateCache(
        encoder,
        folder=Path(options.folder),
        layers=list(range(top + 1)) if module.reads_layers else [top],
        dtype=options.dtype,
        silence=isinstance(module, Seq2SeqModule),
        downmix=data.config.downmix,
    )
    data.read_states(module.state_cache.store)
    say(f"states are kept in {options.folder}, which has those of {len(module.state_cache.store)} utterances")


def write_beginning(run: TrainingRun, folder: Path) -> None:
    """Write what is known before training: the config as it runs, and what was dropped."""
    from omegaconf import OmegaConf

    with written_whole(folder / "config.yaml") as file:
        file.write(OmegaConf.to_yaml(OmegaConf.create(run.config)))
    rows = [{"split": name, **asdict(skip)} for name, skips in run.data.skips.items() for skip in skips]
    with written_whole(folder / "skipped.jsonl") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# A model to use ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class InferenceOptions:
    """What a user may say about a model that is only used; None leaves it to the model."""

    window: Window | None = None
    tail_s: float | None = None
    language: str | None = None
    whisper_task: str = "transcribe"
    max_tokens_per_s: float | None = None
    decoder: dict[str, Any] | None = None
    detect_language: bool = False


def find_checkpoint(name: str) -> Path | None:
    """The checkpoint file of a run directory or path; None where the name is neither.

    Raises:
        CheckpointError: a directory that looks like a run but holds no checkpoint.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if not path.is_dir() or (path / "config.json").is_file():
        return None
    for candidate in (path / "checkpoints" / "best.ckpt", path / "checkpoints" / "last.ckpt"):
        if candidate.is_file():
            return candidate
    raise CheckpointError(name, "holds neither checkpoints/best.ckpt nor config.json", "is it a run directory?")


def load_model(name: str, options: InferenceOptions, say: Say) -> ASRModule:
    """A module that transcribes, from a run directory, checkpoint, backbone option or pretrained name.

    A pretrained Whisper gets the window it was trained with, 30 s, unless told otherwise.

    Raises:
        CheckpointError: there is no such model, or it cannot transcribe without training.
    """
    checkpoint = find_checkpoint(name)
    module = (
        restore_module(read_checkpoint(checkpoint), options)
        if checkpoint is not None
        else _pretrained_module(name, options, say)
    )
    if options.decoder is not None:
        decode_with(module, options.decoder)
    if options.max_tokens_per_s is not None:
        _cap_tokens(module, options.max_tokens_per_s)
    _listen_for_languages(module, options)
    encoder_of(module).set_window(options.window, options.tail_s)
    return module.eval()


def make_decoder(node: dict[str, Any]) -> Any:
    """The ``decoder`` option of checked settings."""
    return build_option(node, "decoder")


def decoder_node(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The checked settings of a ``decoder`` option, by its name or from a file, with some of them replaced.

    Raises:
        ConfigError: there is no such option, or no such setting.
    """
    node = option_node("decoder", name, settings)
    build_option(node, "decoder")
    return node


def decode_with(module: ASRModule, node: dict[str, Any]) -> None:
    """Have a module decode by another ``decoder`` option than its own.

    Raises:
        ConfigError: the option is for models of another kind.
        LanguageModelError: a file of the decoder's is missing or wrong.
    """
    decoder = make_decoder(node)
    if isinstance(module, Seq2SeqModule | JointModule):
        module.decode_with(decoder)
    else:
        cast(CTCModule, module).search_with(decoder)


def ask_for_times(module: ASRModule, measure: Measure, *, needed: bool) -> None:
    """Have a module say when words were said, and how sure it was of them.

    Args:
        module: what transcribes.
        measure: of confidence; Whisper has the probabilities of tokens only.
        needed: whether to refuse a model that cannot.

    Raises:
        ConfigError: the model cannot, or not by this measure.
    """
    if isinstance(module, CTCModule):
        module.times = measure
        return
    assert isinstance(module, Seq2SeqModule)
    if measure != "max_prob":
        raise ConfigError("times", f"is {measure}, and Whisper knows only how likely a token was", "times=max_prob")
    module.times = bool(module.model.generation.get("alignment_heads"))
    if needed and not module.times:
        what = "this Whisper's generation config names no alignment_heads, by which words get their times"
        raise ConfigError("format", what, "another checkpoint, or srt")


def _listen_for_languages(module: ASRModule, options: InferenceOptions) -> None:
    multilingual = isinstance(module, Seq2SeqModule) and module.tokenizer.is_multilingual
    if options.detect_language and not multilingual:
        raise ConfigError("detect_language", "this model knows no languages", "a multilingual Whisper")
    if isinstance(module, Seq2SeqModule) and multilingual:
        known = module.tokenizer.language is not None
        module.detect = "all" if options.detect_language else None if known else "missing"


def _cap_tokens(module: ASRModule, max_tokens_per_s: float) -> None:
    capped = (WhisperGreedy, WhisperBeam, AttentionGreedy, AttentionBeam)
    if not isinstance(module, Seq2SeqModule | JointModule) or not isinstance(module.decoder, capped):
        what = "this model does not write a token at a time"
        raise ConfigError("max_tokens_per_s", what, "leave it out")
    module.decoder = replace(module.decoder, max_tokens_per_s=max_tokens_per_s)


def load_labels(name: str) -> LabelTokenizer:
    """The tokenizer of a CTC or joint model's run directory or checkpoint.

    Raises:
        CheckpointError: there is no such checkpoint, or its model has no labels.
    """
    checkpoint = find_checkpoint(name)
    if checkpoint is None:
        raise CheckpointError(name, "is no run directory and no checkpoint", "labels are those of a trained model")
    state = read_checkpoint(checkpoint)[KEY]["tokenizer"]
    if state["kind"] == "whisper":
        raise CheckpointError(name, "writes Whisper's tokens, not labels", "a CTC or joint model, or unit=word")
    return cast(LabelTokenizer, restore_tokenizer(state, _own_class))


def load_states_encoder(name: str, options: InferenceOptions, say: Say) -> Any:
    """The encoder of a run directory, checkpoint, backbone option or pretrained name, in eval mode.

    A pretrained Whisper gets the window it was trained with, 30 s, unless told otherwise.

    Raises:
        CheckpointError: there is no such model.
    """
    checkpoint = find_checkpoint(name)
    if checkpoint is not None:
        encoder = encoder_of(restore_module(read_checkpoint(checkpoint), options))
    else:
        source = _backbone_source(name)
        folder = resolve_checkpoint(source, say=say)
        backbone = backbone_class_for(folder, _backbone_classes()).pretrained(source, options.language)
        encoder = backbone.load_encoder(folder)
    encoder.set_window(options.window, options.tail_s)
    return encoder.requires_grad_(False).eval()


def _backbone_classes() -> list[type[Backbone]]:
    """The classes of all ``backbone`` options."""
    from omegaconf import OmegaConf

    nodes: list[Any] = [OmegaConf.load(path) for path in sorted((config_folder() / "backbone").rglob("*.yaml"))]
    paths = {str(node.get("backbone", node)["_target_"]) for node in nodes if "_target_" in node.get("backbone", node)}
    return [_own_class(path) for path in sorted(paths)]


def restore_module(checkpoint: dict[str, Any], options: InferenceOptions) -> ASRModule:
    """The module of a checkpoint, with no other file and no network."""
    saved = checkpoint[KEY]
    config, description = saved["config"], saved["model"]
    state = dict(saved["tokenizer"])
    if state["kind"] == "whisper" and options.language is not None:
        state["language"] = options.language
    tokenizer = restore_tokenizer(state, _own_class)
    shared: dict[str, Any] = {"tokenizer": tokenizer, "policy": TrainAll(), "normalizers": {}, "optim": None}
    seq2seq = description["task"] == "seq2seq"
    policy: FreezePolicy = _checked(config["freeze_policy"])
    model: Any = _pretrained_again(config, seq2seq) if policy.only_trained else _untrained(description, seq2seq)
    module: ASRModule
    if seq2seq:
        policy.prepare(model.encoder, model.net)
        module = Seq2SeqModule(model=model, decoder=_checked(config["decoder"]), label_smoothing=0.0, **shared)
    else:
        states = _checked(config["states"]).build(model)
        policy.prepare(model, None)
        head = _checked(config["head"]).build(dim=states.dim, vocab_size=tokenizer.vocab_size)
        module = _on_states(_checked(config["task"]), model, states, head, _checked(config["decoder"]), shared)
    # Scores, and the CTC that helped to train Whisper's encoder, are of no use to text.
    left = ("_metrics.", "ctc.") if seq2seq else ("_metrics.",)
    weights = {key: value for key, value in checkpoint["state_dict"].items() if not key.startswith(left)}
    module.load_state_dict(module.with_frozen(weights, checkpoint))
    merge_adapters(module)
    return module


def _untrained(description: dict[str, Any], seq2seq: bool) -> Any:
    """A model of that description with random weights."""
    return WhisperSeq2Seq.from_description(description) if seq2seq else rebuild(description, _own_class)


def _pretrained_again(config: dict[str, Any], seq2seq: bool) -> Any:
    """The pretrained model that a checkpoint of trained parts only was made from."""
    backbone = _checked(config["backbone"])
    folder = backbone_folder(backbone, lambda _: None)
    return backbone.load_seq2seq(folder) if seq2seq else backbone.load_encoder(folder)


def _checked(node: dict[str, Any]) -> Any:
    """An object of a config that came with a checkpoint: a class of this package, checked before it is called."""
    return build_option(node, "config of the checkpoint")


def _backbone_source(name: str) -> str:
    """The source of a backbone option of that name, or the name itself."""
    from omegaconf import OmegaConf

    option = config_folder() / "backbone" / f"{name}.yaml"
    if not option.is_file():
        return name
    node: Any = OmegaConf.load(option)
    return str(node.get("backbone", node)["source"])


def _pretrained_module(name: str, options: InferenceOptions, say: Say) -> ASRModule:
    source = _backbone_source(name)
    folder = resolve_checkpoint(source, say=say)
    backbone: Any = backbone_class_for(folder, _backbone_classes()).pretrained(source, options.language)
    if "seq2seq" not in backbone.tasks:
        if not is_ctc_checkpoint(folder):
            what = "has no decoder and no CTC head: it writes no text before it is trained"
            raise CheckpointError(name, what, "train it with task=ctc")
        return _pretrained_ctc(backbone, folder)
    tokenizer = WhisperTokenizer.from_folder(
        folder, language=options.language, task=options.whisper_task, normalizer="none"
    )
    return Seq2SeqModule(
        model=backbone.load_seq2seq(folder),
        decoder=WhisperGreedy(suppress=True, max_tokens_per_s=None),
        label_smoothing=0.0,
        tokenizer=tokenizer,
        policy=TrainAll(),
        optim=None,
        normalizers={},
    )


def _pretrained_ctc(backbone: Backbone, folder: Path) -> CTCModule:
    """A checkpoint that is fine-tuned with CTC, as it is."""
    encoder = backbone.load_encoder(folder)
    tokenizer = CharTokenizer(
        characters=read_ctc_vocabulary(folder, backbone.adapter_language).characters, normalizer="lower"
    )
    states = LastLayer(stride=1).build(encoder)
    head = PretrainedHead(dropout=0.0).build(dim=states.dim, vocab_size=tokenizer.vocab_size)
    copy_ctc_rows(backbone, folder, last_layer(head), tokenizer.characters)
    return CTCModule(
        encoder=encoder,
        states=states,
        head=head,
        decoder=CtcGreedy(),
        tokenizer=tokenizer,
        policy=TrainAll(),
        optim=None,
        normalizers={},
    )
