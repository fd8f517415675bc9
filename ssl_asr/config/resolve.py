"""The typed schema of a run, and `resolve`, which turns what was typed into what will run.

The only place that knows ``freeze``. Importing it imports no torch.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ssl_asr.config.options import check_node
from ssl_asr.errors import ConfigError, did_you_mean, raise_all
from ssl_asr.textfiles import is_hub_name, written_whole

_POLICIES = "ssl_asr.models.freezing"
# What a backbone file may recommend, and `freeze` fold to.
_FOLDED = {
    "none": {"_target_": f"{_POLICIES}.TrainAll"},
    "feature_encoder": {"_target_": f"{_POLICIES}.FreezeFeatureEncoder"},
    "encoder": {"_target_": f"{_POLICIES}.FreezeEncoder"},
}
_NORMALIZERS = ("none", "lower", "basic", "whisper_basic", "whisper_english", "by_language")


@dataclass
class TrainConfig:
    """Everything ``python -m ssl_asr.train`` takes. Groups are options under ``conf/``; scalars have their type here.

    Attributes:
        freeze: false trains every weight; true freezes by the policy, or the whole encoder where none is
            named; null takes the backbone's recommendation or the policy named.
        seed: of everything random; 0 is a seed.
        normalizers: text normalisers that scores are reported under; the first one's WER chooses the best
            checkpoint.
        resume: a checkpoint to continue from, or null.
        run_dir: where everything of the run goes.
        run_name: shown by the loggers; null takes the folder's name.
        samples: aligned hypotheses to show at each validation.
        verbose: whether to show bars and tables.
    """

    backbone: Any = MISSING
    task: Any = MISSING
    states: Any = MISSING
    head: Any = MISSING
    tokenizer: Any = MISSING
    decoder: Any = MISSING
    freeze_policy: Any = MISSING
    augment: Any = MISSING
    state_cache: Any = MISSING
    data: Any = MISSING
    optimizers: Any = MISSING
    schedulers: Any = MISSING
    trainer: Any = MISSING
    logger: Any = MISSING
    freeze: bool | None = None
    seed: int = 0
    normalizers: list[str] = field(default_factory=lambda: ["lower", "whisper_english"])
    resume: str | None = None
    run_dir: str = MISSING
    run_name: str | None = None
    samples: int = 4
    verbose: bool = True


@dataclass
class EvaluateConfig:
    """Everything ``ssl-asr evaluate`` takes.

    Attributes:
        model: a run directory, a checkpoint file, a backbone option, or a pretrained Whisper's name.
        manifest: what to score: a path, a list of paths, or paths by name.
        predictions: score this predictions.jsonl again instead of running a model.
        decoder: a ``decoder`` option; null takes the model's own.
        decoder_file: a file with such an option's settings, as ``tune_decoding`` writes it.
        max_tokens_per_s: caps the tokens Whisper may write an utterance by its length; null for no cap.
        window: Whisper's window, ``real`` or ``30s``; null takes the model's own, 30s for a pretrained one.
        tail_s: seconds of silence after the speech for ``real``; null takes the model's own.
        language, whisper_task: of a multilingual Whisper where the manifest names none; without a language it is
            heard.
        detect_language: hear the language of every utterance, and score it where the manifest has ``lang``.
        reference: the manifest's key that holds what should be written, such as ``translation``.
        only: tags of the manifest and the value each must have for an utterance to be scored.
        normalizers: text normalisers that scores are reported under.
        chunk_s: a CTC model takes longer recordings apart into windows of so many seconds (Whisper's own is 30 s).
        stride_s: seconds at either end of such a window that only lend context to its middle.
        vad: take long recordings apart where nobody speaks instead, whatever the model, and hear the parts in batches.
        max_batch_s: seconds of audio in a batch, padding included.
        num_workers: reading processes.
        on_bad_audio: ``skip`` counts and names what cannot be read, ``error`` stops at the first.
        max_skip_fraction: a manifest that loses more than this share is an error.
        accelerator, precision: as Lightning's.
        output_dir: where predictions and results go.
        by: group errors by these: tags of the manifest, ``lang``, or ``length``.
        confusions, worst: how many of the most frequent errors and of the worst utterances to show.
        samples: aligned hypotheses to show.
        verbose: whether to show bars and tables.
    """

    model: str | None = None
    manifest: Any = None
    predictions: str | None = None
    decoder: Any = None
    decoder_file: str | None = None
    max_tokens_per_s: float | None = None
    window: str | None = None
    tail_s: float | None = None
    language: str | None = None
    whisper_task: str = "transcribe"
    detect_language: bool = False
    reference: str = "text"
    only: Any = None
    chunk_s: float = 30.0
    stride_s: float = 4.0
    vad: bool = False
    normalizers: list[str] = field(default_factory=lambda: ["lower", "whisper_english"])
    max_batch_s: float = 120.0
    num_workers: int = 2
    on_bad_audio: str = "skip"
    max_skip_fraction: float = 0.05
    accelerator: str = "auto"
    precision: str = "32-true"
    output_dir: str = MISSING
    by: list[str] = field(default_factory=list)
    confusions: int = 10
    worst: int = 5
    samples: int = 0
    verbose: bool = True


@dataclass
class TranscribeConfig:
    """Everything ``ssl-asr transcribe`` takes.

    Attributes:
        model: a run directory, a checkpoint file, a backbone option, or a pretrained Whisper's name.
        input: audio files, folders of them, wildcards, manifests (.jsonl), or ``-`` for paths on standard input.
        output: a file, whose name says the format, or a folder; null prints.
        format: ``text``, ``jsonl``, ``srt``, ``vtt``, ``ctm`` or ``textgrid``; null goes by the output's name.
        times: whether to say when words were said, and how sure the model was by this measure: ``max_prob`` or
            ``entropy``; null leaves it to the format.
        num_workers: reading processes.
        chunk_s, stride_s, vad: see `EvaluateConfig`.
        decoder, decoder_file, window, tail_s, language, whisper_task: see `EvaluateConfig`.
        max_batch_s, accelerator, precision: see `EvaluateConfig`.
        verbose: whether to show bars.
    """

    model: str = MISSING
    input: list[str] = MISSING
    output: str | None = None
    format: str | None = None
    times: str | None = None
    num_workers: int = 0
    chunk_s: float = 30.0
    stride_s: float = 4.0
    vad: bool = False
    decoder: Any = None
    decoder_file: str | None = None
    window: str | None = None
    tail_s: float | None = None
    language: str | None = None
    whisper_task: str = "transcribe"
    max_batch_s: float = 120.0
    accelerator: str = "auto"
    precision: str = "32-true"
    verbose: bool = True


@dataclass
class AlignConfig:
    """Everything ``ssl-asr align`` takes.

    Attributes:
        model: a run directory, a checkpoint, or the name of a checkpoint that is fine-tuned with CTC.
        manifest: utterances with their texts.
        output: a file, whose name says the format, or a folder.
        format: ``jsonl``, ``srt``, ``vtt``, ``ctm`` or ``textgrid``; null goes by the output's name.
        times: the measure of confidence, ``max_prob`` or ``entropy``.
        window, tail_s, max_batch_s, num_workers, accelerator, precision: see `EvaluateConfig`.
        verbose: whether to show bars and tables.
    """

    model: str = MISSING
    manifest: str = MISSING
    output: str = MISSING
    format: str | None = None
    times: str = "max_prob"
    window: str | None = None
    tail_s: float | None = None
    max_batch_s: float = 120.0
    num_workers: int = 0
    accelerator: str = "auto"
    precision: str = "32-true"
    verbose: bool = True


@dataclass
class ExtractConfig:
    """Everything ``ssl-asr extract`` takes.

    Attributes:
        model: a run directory, a checkpoint file, a backbone option or a pretrained name: its encoder.
        input: audio files, folders of them, or manifests (.jsonl).
        output_dir: where the shards go; what is there already is not made again.
        layers: ``last``, ``all``, or a list: 0 is what the first layer reads, ``n`` the output of the ``n``-th.
        dtype: ``float32``, or ``float16`` for half the room.
        silence: also write the frames after the speech that Whisper's encoder sees.
        window, tail_s, max_batch_s, num_workers, accelerator, precision: see `EvaluateConfig`.
        verbose: whether to show bars and tables.
    """

    model: str = MISSING
    input: list[str] = MISSING
    output_dir: str = MISSING
    layers: Any = "last"
    dtype: str = "float32"
    silence: bool = False
    window: str | None = None
    tail_s: float | None = None
    max_batch_s: float = 120.0
    num_workers: int = 2
    accelerator: str = "auto"
    precision: str = "32-true"
    verbose: bool = True


@dataclass
class TuneDecodingConfig:
    """Everything ``ssl-asr tune_decoding`` takes.

    Attributes:
        model: a run directory, a checkpoint file, or the name of a checkpoint that is fine-tuned with CTC.
        manifest: dev data, never test: a path, a list of paths, or paths by name.
        decoder: where to start from, a ``ctc_beam`` with a language model.
        lm_weights, word_scores: tried with each other.
        unknown_scores: of words that neither lexicon nor language model has, tried with the best of those.
        beam_sizes: tried with the best of all; the smallest that is as good as any is taken.
        rescore_weights, rescore_word_scores: tried with each other where ``decoder.rescore_lm`` looks a second time.
        output: the decoder's settings, a file for ``decoder_file=``.
        normalizer: the text normaliser of the WER that decides.
        window, tail_s, max_batch_s, num_workers, accelerator, precision: see `EvaluateConfig`.
        verbose: whether to show bars and tables.
    """

    model: str = MISSING
    manifest: Any = MISSING
    decoder: Any = MISSING
    lm_weights: list[float] = field(default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0, 1.5])
    word_scores: list[float] = field(default_factory=lambda: [-1.0, 0.0, 1.0, 2.0, 3.0, 4.0])
    unknown_scores: list[float] = field(default_factory=lambda: [-5.0, -10.0, -15.0, -20.0])
    beam_sizes: list[int] = field(default_factory=lambda: [8, 16, 32, 64, 128])
    rescore_weights: list[float] = field(default_factory=lambda: [0.0, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0])
    rescore_word_scores: list[float] = field(default_factory=lambda: [-1.0, 0.0, 1.0, 2.0, 3.0, 4.0])
    output: str = MISSING
    normalizer: str = "lower"
    window: str | None = None
    tail_s: float | None = None
    max_batch_s: float = 120.0
    num_workers: int = 2
    accelerator: str = "auto"
    precision: str = "32-true"
    verbose: bool = True


@dataclass
class LmConfig:
    """Everything ``ssl-asr lm`` takes.

    Attributes:
        input: manifests (.jsonl) and text files, a sentence a line (.txt, or .txt.gz).
        output: the ARPA file to write; a name that ends in .gz is gzipped.
        order: of the longest n-grams.
        unit: ``word``, ``char``, or ``label`` for the labels of a model.
        model: for ``label``, a run directory or checkpoint whose labels the text is written in.
        normalizer: the text normaliser that text goes through first; as the model's references do.
        prune: for each order, n-grams that occur so often and no oftener are left out; the last number holds for all
            longer ones, unigrams stay. Empty prunes nothing.
        check: manifests and text files whose perplexity is shown.
        verbose: whether to show tables.
    """

    input: list[str] = MISSING
    output: str = MISSING
    order: int = 4
    unit: str = "word"
    model: str | None = None
    normalizer: str = "lower"
    prune: list[int] = field(default_factory=list)
    check: list[str] = field(default_factory=list)
    verbose: bool = True


@dataclass
class CompareConfig:
    """Everything ``ssl-asr compare`` takes; the first two may be given without their names.

    Attributes:
        first, second: what to compare: a ``predictions.jsonl``, or the folder of a run or an evaluation.
        normalizers: text normalisers to compare under.
        output: a .json file for the results, or null.
        worst: how many of the utterances that changed most to show.
        verbose: whether to show tables.
    """

    first: str = MISSING
    second: str = MISSING
    normalizers: list[str] = field(default_factory=lambda: ["lower", "whisper_english"])
    output: str | None = None
    worst: int = 5
    verbose: bool = True


@dataclass
class CorpusConfig:
    """Everything ``ssl-asr corpus`` takes.

    Attributes:
        output_dir: where audio and manifests go.
        train, dev, test: sentences in each; no sentence is in two, nor is a voice.
        seed: of sentences, voices and noise.
        verbose: whether to show bars.
    """

    output_dir: str = MISSING
    train: int = 240
    dev: int = 32
    test: int = 64
    seed: int = 0
    verbose: bool = True


@dataclass
class DemoConfig:
    """Everything ``ssl-asr demo`` takes.

    Attributes:
        output_dir: where corpus, run and scores go.
        model: the Whisper backbone option to start from.
        train, dev, test: sentences in each split.
        epochs: of fine-tuning.
    """

    output_dir: str = "demo"
    model: str = "whisper_tiny_en"
    train: int = 240
    dev: int = 32
    test: int = 64
    epochs: int = 2


SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "transcribe": TranscribeConfig,
    "align": AlignConfig,
    "extract": ExtractConfig,
    "compare": CompareConfig,
    "lm": LmConfig,
    "tune_decoding": TuneDecodingConfig,
    "corpus": CorpusConfig,
    "demo": DemoConfig,
}


def register_schemas() -> None:
    """Make the schemas known to Hydra, as ``NAME_schema``."""
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(name=f"{name}_schema", node=schema)


def config_folder() -> Path:
    """The ``conf`` folder: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parent.parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def to_plain(cfg: DictConfig) -> tuple[dict[str, Any], list[ConfigError]]:
    """The config as plain data with interpolations resolved, and an error for each mandatory value not given.

    Raises:
        ConfigError: an interpolation leads nowhere.
    """
    missing = [ConfigError(key, "is missing", f"give {key}=…") for key in sorted(OmegaConf.missing_keys(cfg))]
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error.full_key or "config"), str(error.msg or error).splitlines()[0]) from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}, missing


def named_manifests(value: Any, key: str) -> dict[str, str]:
    """Manifests by name, from a path (named ``test``), a list of paths (by folder and file) or names to paths.

    Raises:
        ConfigError: it is none of these, or two of a list come to the same name.
    """
    if value is None:
        return {}
    if isinstance(value, str):
        return {"test": value}
    if isinstance(value, list) and all(isinstance(path, str) for path in value):
        named = {f"{Path(path).resolve().parent.name}_{Path(path).stem}": path for path in value}
        if len(named) == len(value):
            return named
    if isinstance(value, dict) and all(isinstance(path, str) for path in value.values()):
        return {str(name): path for name, path in value.items()}
    raise ConfigError(key, f"is {value!r}", "it should be a path, a list of them, or {name: path, …}")


def fold_freeze(config: dict[str, Any]) -> dict[str, Any]:
    """The freeze policy that ``freeze``, ``freeze_policy`` and the backbone's recommendation come to.

    ``freeze: false`` trains every weight whatever the policy says. A named policy, or ``freeze: true``, stands
    as it is, ``auto`` then meaning the whole encoder. With neither, the backbone recommends.
    """
    freeze, policy = config["freeze"], config["freeze_policy"]
    is_auto = policy == {"name": "auto"}
    if freeze is False:
        return _FOLDED["none"]
    if not is_auto:
        folded: dict[str, Any] = policy
        return folded
    # A recommendation that is none is an error of its own, found where the backbone is checked.
    return _FOLDED["encoder"] if freeze else _FOLDED.get(config["backbone"].get("recommended_freeze"), _FOLDED["none"])


def _nodes(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every node with a ``_target_``, by key."""
    keys = [
        "backbone",
        "task",
        "head",
        "tokenizer",
        "decoder",
        "data",
        "trainer",
        "logger",
        "freeze_policy",
        "augment",
        "state_cache",
        "states",
    ]
    nodes = {key: config[key] for key in keys}
    for group in ("optimizers", "schedulers"):
        for side in ("encoder", "rest"):
            nodes[f"{group}.{side}"] = (config[group] or {}).get(side)
    return {key: node if isinstance(node, dict) else {} for key, node in nodes.items()}


def _check_names(names: list[str], key: str) -> list[ConfigError]:
    if not names:
        return [ConfigError(key, "is empty", "name at least one normaliser")]
    unknown = [name for name in names if name not in _NORMALIZERS]
    return [ConfigError(key, f"no normaliser '{name}'", did_you_mean(name, list(_NORMALIZERS))) for name in unknown]


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0


def _is_file(value: Any) -> bool:
    return Path(value).is_file()


def _is_language_model(value: Any) -> bool:
    return Path(value).exists() or is_hub_name(str(value))


# (key path, is it right?, what it should be), for values whose type is right but whose range may not be.
_RANGES: list[tuple[str, Callable[[Any], bool], str]] = [
    ("data.max_batch_s", _positive, "more than 0 seconds"),
    ("data.eval_batch_s", _positive, "more than 0 seconds"),
    ("data.max_batch_size", lambda v: v is None or _positive(v), "null, or 1 or more"),
    ("data.speed_factors", lambda v: all(0.5 <= factor <= 2 for factor in v), "factors of 0.5 to 2"),
    ("data.num_workers", lambda v: v >= 0, "0 or more"),
    ("data.max_skip_fraction", lambda v: 0 <= v <= 1, "a share from 0 to 1"),
    ("data.on_bad_audio", lambda v: v in ("skip", "error"), "skip or error"),
    ("trainer.max_epochs", _positive, "1 or more"),
    ("trainer.accumulate_grad_batches", _positive, "1 or more"),
    ("trainer.gradient_clip_val", lambda v: v is None or _positive(v), "null, or more than 0"),
    ("trainer.max_nonfinite", _positive, "1 or more"),
    ("trainer.ema_decay", lambda v: v is None or 0 < v < 1, "null, or more than 0 and less than 1"),
    ("trainer.average_best", lambda v: v is None or v >= 2, "null, or 2 checkpoints or more"),
    ("task.ctc_weight", lambda v: 0 <= v < 1, "0, or less than 1"),
    ("task.ctc_lr_scale", _positive, "more than 0"),
    ("task.ctc_weight_end", lambda v: 0 <= v <= 1, "a share from 0 to 1"),
    ("task.ctc_weight_updates", _positive, "1 update or more"),
    ("task.label_smoothing", lambda v: 0 <= v < 1, "0, or less than 1"),
    ("decoder.beam_size", _positive, "1 or more"),
    ("decoder.n_best", _positive, "1 or more"),
    ("decoder.max_labels", _positive, "null, or 1 or more"),
    ("decoder.beam_threshold", _positive, "null, or more than 0"),
    ("decoder.blank_collapse", lambda v: 0 < v < 1, "null, or more than 0 and less than 1"),
    ("decoder.ctc_weight", lambda v: 0 <= v < 1, "0, or less than 1"),
    ("decoder.length_penalty", lambda v: v >= 0, "0 or more"),
    ("decoder.lm", _is_language_model, "a file; ssl-asr lm makes one"),
    ("decoder.rescore_lm", _is_language_model, "a file, or a causal model's folder or Hub name"),
    ("decoder.rescore_best", _positive, "1 or more"),
    ("decoder.lexicon", _is_file, "a text file with a word on each line"),
    ("head.dropout", lambda v: 0 <= v < 1, "0, or less than 1"),
    ("head.decoder_dropout", lambda v: 0 <= v < 1, "0, or less than 1"),
    ("backbone.layerdrop", lambda v: 0 <= v < 1, "0, or less than 1"),
    ("backbone.adapter_dim", _positive, "null, or 1 or more"),
    ("freeze_policy.rank", _positive, "1 or more"),
    ("freeze_policy.alpha", _positive, "more than 0"),
    ("optimizers.encoder.lr", lambda v: v >= 0, "0 or more"),
    ("optimizers.rest.lr", lambda v: v >= 0, "0 or more"),
    ("optimizers.encoder.layer_decay", lambda v: 0 < v <= 1, "more than 0, at most 1"),
    ("optimizers.rest.layer_decay", lambda v: 0 < v <= 1, "more than 0, at most 1"),
    ("freeze_policy.updates", _positive, "1 update or more"),
    ("freeze_policy.wait", lambda v: v >= 0, "0 or more"),
    ("freeze_policy.every", _positive, "1 or more"),
    ("freeze_policy.k", _positive, "1 layer or more"),
    ("tokenizer.size", lambda v: v >= 2, "2 or more"),
    ("states.stride", lambda v: v in (1, 2, 3), "1, 2 or 3"),
    ("augment.time_prob", lambda v: 0 <= v <= 1, "a share from 0 to 1"),
    ("augment.time_span", _positive, "1 frame or more"),
    ("augment.feature_prob", lambda v: 0 <= v <= 1, "a share from 0 to 1"),
    ("augment.feature_span", _positive, "1 feature or more"),
    ("backbone.tail_s", lambda v: 0 <= v < 30, "0 to 30 seconds"),
    ("backbone.recommended_freeze", lambda v: v in _FOLDED, f"one of {', '.join(_FOLDED)}"),
    (
        "backbone.train_tail_s",
        lambda v: v is None or (len(v) == 2 and 0 <= v[0] <= v[1] < 30),
        "null, or [least, most] seconds of 0 to 30",
    ),
]


def _lookup(config: dict[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return None
        node = node[part]
    return node


def _check_ranges(config: dict[str, Any], wrong: set[str], only: str = "") -> list[ConfigError]:
    """Values out of range, of the keys that begin with ``only`` and have no other mistake."""
    errors = []
    for key, is_right, expected in (row for row in _RANGES if row[0].startswith(only)):
        value = _lookup(config, key)
        optional = value is None and not key.endswith((".lr", "max_epochs"))
        if key not in wrong and not optional and not is_right(value):
            errors.append(ConfigError(key, f"is {value!r}", f"it should be {expected}"))
    return errors


_FRAME_TOKENS = ({"Characters", "PretrainedCharacters", "Pieces", "Symbols"}, "tokenizer=char")
# Which parts a task takes, and what to say where another is asked for.
_PARTS: dict[str, dict[str, tuple[set[str], str]]] = {
    "Tuned": {"decoder": ({"CtcBeam"}, "decoder=ctc_beam")},
    "Seq2Seq": {
        "head": ({"NoHead"}, "head=none"),
        "tokenizer": ({"WhisperTokens"}, "tokenizer=whisper"),
        "decoder": ({"WhisperGreedy", "WhisperBeam"}, "decoder=whisper_greedy or whisper_beam"),
    },
    "Ctc": {
        "head": ({"LinearHead", "DnnHead", "BiLstmHead", "PretrainedHead"}, "head=linear or head=dnn"),
        "tokenizer": _FRAME_TOKENS,
        "decoder": ({"CtcGreedy", "CtcBeam", "CtcLexicon"}, "decoder=ctc_greedy, ctc_beam or ctc_lexicon"),
    },
    "Joint": {
        "head": ({"GruAttentionHead", "TransformerAttentionHead"}, "head=attention_gru or attention_transformer"),
        "tokenizer": _FRAME_TOKENS,
        "decoder": (
            {"AttentionGreedy", "AttentionBeam", "CtcGreedy", "CtcBeam", "CtcLexicon"},
            "decoder=attention_greedy, attention_beam, ctc_greedy, ctc_beam or ctc_lexicon",
        ),
    },
}


def check_part(task: str, key: str, node: dict[str, Any]) -> list[ConfigError]:
    """Whether a head, tokenizer or decoder goes with a task; a node without ``_target_`` is an error of its own."""
    kind = str(node.get("_target_", "")).rpartition(".")[2]
    wanted, remedy = _PARTS.get(task, {}).get(key, ({kind}, ""))
    return [] if not kind or kind in wanted else [ConfigError(key, f"{kind} does not go with this task", remedy)]


def _check_ctc_share(task: dict[str, Any]) -> list[ConfigError]:
    end, updates = task.get("ctc_weight_end"), task.get("ctc_weight_updates")
    if task.get("ctc_weight") == 0:
        return [ConfigError("task.ctc_weight", "is 0, which leaves CTC's half untrained", "more than 0")]
    if (end is None) != (updates is None):
        what = f"ctc_weight_end is {end} and ctc_weight_updates {updates}"
        return [ConfigError("task.ctc_weight_end", what, "give both, or neither")]
    return []


def _check_beam(decoder: dict[str, Any]) -> list[ConfigError]:
    """Whether a beam holds what is asked of it; values of a wrong type are errors of their own."""
    beams, texts = decoder.get("beam_size"), decoder.get("n_best")
    if isinstance(beams, int) and isinstance(texts, int) and texts > beams:
        return [ConfigError("decoder.n_best", f"is {texts}, and the beam holds {beams}", "decoder.beam_size as large")]
    return []


def _check_fit(config: dict[str, Any]) -> list[ConfigError]:
    """Whether backbone, task, head, tokenizer and decoder go together."""
    kind = {
        key: str(config[key].get("_target_", "")).rpartition(".")[2]
        for key in ("backbone", "task", "freeze_policy", "augment", "state_cache")
    }
    errors = []
    if kind["task"] == "Seq2Seq":
        if kind["backbone"] != "WhisperBackbone":
            what = "seq2seq needs a decoder, this backbone has none"
            errors.append(ConfigError("task", what, "task=ctc, or a whisper backbone"))
        if config["states"] != {"_target_": "ssl_asr.models.states.LastLayer", "stride": 1}:
            what = "Whisper's decoder reads the encoder's last states as they are"
            errors.append(ConfigError("states", what, "states=last states.stride=1"))
    elif kind["freeze_policy"] == "FreezeDecoder":
        what = "this task has no pretrained decoder"
        errors.append(ConfigError("freeze_policy", what, "freeze_policy=encoder, or task=seq2seq"))
    for key in ("head", "tokenizer", "decoder"):
        errors += check_part(kind["task"], key, config[key])
    if kind["task"] == "Joint":
        errors += _check_ctc_share(config["task"])
    errors += _check_beam(config["decoder"])
    if kind["state_cache"] == "DiskStateCache" and config["data"].get("speed_factors"):
        what = "audio that changes each epoch has no states that could be kept"
        errors.append(ConfigError("data.speed_factors", what, "data.speed_factors=[], or state_cache=none"))
    return errors + _check_frozen_fit(kind, config)


_IN_TRAINING = (
    "dropout",
    "hidden_dropout",
    "attention_dropout",
    "activation_dropout",
    "feat_proj_dropout",
    "layerdrop",
)


def _check_frozen_fit(kind: dict[str, str], config: dict[str, Any]) -> list[ConfigError]:
    """Whether what is asked of the encoder goes with its being frozen or not."""
    errors = []
    if kind["freeze_policy"] == "FreezeEncoder" and kind["augment"] == "SpecAugment":
        what = "a frozen encoder is never masked, so this would do nothing"
        errors.append(ConfigError("augment", what, "augment=none, or freeze=false"))
    if kind["freeze_policy"] == "FreezeEncoder":
        # Whisper's dropouts are its decoder's as well.
        idle = ("layerdrop",) if kind["task"] == "Seq2Seq" else _IN_TRAINING
        errors += [
            ConfigError(
                f"backbone.{name}", "a frozen encoder drops nothing, so this would do nothing", "null, or freeze=false"
            )
            for name in idle
            if config["backbone"].get(name)
        ]
    if kind["freeze_policy"] == "FreezeEncoder" and kind["task"] == "Seq2Seq" and config["task"].get("ctc_weight"):
        what = "CTC beside the decoder helps the encoder to train, and this one is frozen"
        errors.append(ConfigError("task.ctc_weight", what, "task.ctc_weight=0, or freeze=false"))
    if kind["state_cache"] == "DiskStateCache" and kind["freeze_policy"] != "FreezeEncoder":
        what = "states of an encoder that trains change with every update and cannot be kept"
        errors.append(ConfigError("state_cache", what, "freeze=true, or state_cache=none"))
    return errors


def _check_monitors(config: dict[str, Any]) -> list[ConfigError]:
    """Whether every metric that something waits for will be logged."""
    logged = ["val/loss", "val/wer", "val/cer"]
    logged += [f"val/{kind}/{name}" for kind in ("wer", "cer") for name in config["normalizers"]]
    waiting = [(key, _lookup(config, key)) for key in ("schedulers.encoder.monitor", "schedulers.rest.monitor")]
    errors = [
        ConfigError(key, f"no metric '{name}'", did_you_mean(str(name), logged))
        for key, name in [*waiting, ("trainer.monitor", _lookup(config, "trainer.monitor"))]
        if name is not None and name not in logged
    ]
    if config["data"].get("dev") is None:
        if _lookup(config, "trainer.average_best") is not None:
            what = "no checkpoint is better than another without a validation"
            errors.append(ConfigError("trainer.average_best", what, "give data.dev=…"))
        remedy = "give data.dev=…, or take a scheduler that follows updates"
        errors += [ConfigError(key, "waits for a validation", remedy) for key, name in waiting if name is not None]
    return errors


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """The training config as it will run: plain data, ``freeze`` folded into the policy, everything checked.

    Raises:
        ConfigError, UserErrors: every unknown key, missing value, wrong type, value out of range and pair
            that does not go together, at once, each with its key and a remedy.
    """
    config, errors = to_plain(cfg)
    config["freeze_policy"] = fold_freeze(config)
    try:
        config["data"]["test"] = named_manifests(config["data"].get("test"), "data.test")
    except ConfigError as error:
        errors.append(error)
    nodes = _nodes(config)
    for key, node in nodes.items():
        errors += check_node(node, key)
    errors += _check_ranges(config, {error.where for error in errors})
    errors += _check_fit(config)
    errors += _check_monitors(config)
    errors += _check_names(config["normalizers"], "normalizers")
    raise_all(errors)
    return config


def resolve_plain(cfg: DictConfig) -> dict[str, Any]:
    """The config of the other commands: plain data, its ranges checked.

    Raises:
        ConfigError, UserErrors: what is wrong, at once.
    """
    config, errors = to_plain(cfg)
    if "normalizers" in config:
        errors += _check_names(config["normalizers"], "normalizers")
    if "manifest" in config:
        config["manifest"] = named_manifests(config["manifest"], "manifest")
    errors += _check_decoder(config) + _check_choices(config)
    if "chunk_s" in config and not 0 <= 2 * config["stride_s"] < config["chunk_s"]:
        what = f"is {config['chunk_s']}, of which stride_s={config['stride_s']} at both ends leaves nothing"
        errors.append(ConfigError("chunk_s", what, "more than twice the stride"))
    if not isinstance(config.get("only"), dict | None):
        errors.append(ConfigError("only", f"is {config['only']!r}", "it should be {tag: value, …}"))
    if "unit" in config:
        errors += _check_lm(config)
    if "lm_weights" in config:
        errors += _check_tuning(config)
    raise_all(errors)
    return config


def _check_decoder(config: dict[str, Any]) -> list[ConfigError]:
    errors = _read_decoder(config) if config.get("decoder_file") is not None else []
    if config.get("decoder") is None:
        return errors
    found = check_node(config["decoder"], "decoder")
    ranges = _check_ranges(config, {error.where for error in found}, only="decoder.")
    return errors + found + ranges + ([] if found or ranges else _check_beam(config["decoder"]))


_CHOICES = {
    "window": ("real", "30s"),
    "dtype": ("float32", "float16"),
    "whisper_task": ("transcribe", "translate"),
    "unit": ("word", "char", "label"),
    "format": ("text", "jsonl", "srt", "vtt", "ctm", "textgrid"),
    "times": ("max_prob", "entropy"),
}
_MORE_THAN_NOTHING = ("max_batch_s", "train", "dev", "test", "epochs", "order")


def _check_choices(config: dict[str, Any]) -> list[ConfigError]:
    wrong = [(key, known) for key, known in _CHOICES.items() if config.get(key) not in (None, *known)]
    errors = [ConfigError(key, f"is {config[key]!r}", f"it should be {' or '.join(known)}") for key, known in wrong]
    given = [key for key in _MORE_THAN_NOTHING if key in config and config[key] != MISSING]
    idle = [key for key in given if not _positive(config[key])]
    return errors + [ConfigError(key, f"is {config[key]!r}", "it should be more than 0") for key in idle]


def _check_lm(config: dict[str, Any]) -> list[ConfigError]:
    errors = _check_names([config["normalizer"]], "normalizer")
    if (config["unit"] == "label") != (config["model"] is not None):
        errors.append(ConfigError("model", "goes with unit=label, and only with it", "the labels are the model's"))
    prune = config["prune"]
    if any(least < 0 for least in prune) or sorted(prune) != prune:
        errors.append(ConfigError("prune", f"is {prune!r}", "numbers of 0 or more, none less than the one before"))
    return errors


def _check_tuning(config: dict[str, Any]) -> list[ConfigError]:
    errors = _check_names([config["normalizer"]], "normalizer")
    tried = ("lm_weights", "word_scores", "unknown_scores", "beam_sizes", "rescore_weights", "rescore_word_scores")
    empty = [key for key in tried if not config[key]]
    errors += [ConfigError(key, "is empty", "give at least one value to try") for key in empty]
    if any(not _positive(size) for size in config["beam_sizes"]):
        errors.append(ConfigError("beam_sizes", f"is {config['beam_sizes']!r}", "each should be 1 or more"))
    return errors + check_part("Tuned", "decoder", config["decoder"] if isinstance(config["decoder"], dict) else {})


def _read_decoder(config: dict[str, Any]) -> list[ConfigError]:
    """Put the settings of ``decoder_file`` in the place of ``decoder``."""
    path = Path(config["decoder_file"])
    if config["decoder"] is not None:
        return [ConfigError("decoder_file", "and decoder are both given", "give one of them")]
    if not path.is_file():
        return [ConfigError("decoder_file", f"no such file: {path}", "tune_decoding writes one")]
    try:
        node = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        return [ConfigError("decoder_file", f"{path} is no YAML: {str(error).splitlines()[0]}")]
    if not isinstance(node, dict):
        return [ConfigError("decoder_file", f"{path} holds no settings", "tune_decoding writes such a file")]
    config["decoder"] = node
    return []


def write_decoder(path: Path, options: Any) -> None:
    """Write a decoder's settings, a dataclass, for ``decoder_file=``; its files by their whole paths."""
    kind = type(options)
    node = {"_target_": f"{kind.__module__}.{kind.__name__}", **asdict(options)}
    files = {key: str(Path(node[key]).resolve()) for key in ("lm", "lexicon") if node.get(key) is not None}
    with written_whole(path) as file:
        file.write(OmegaConf.to_yaml(OmegaConf.create(node | files)))


def known_keys(name: str) -> list[str]:
    """The top-level keys of a command's config, for suggestions."""
    return [f.name for f in fields(SCHEMAS[name])]
