"""From the configuration of a command to the options of inference."""

from typing import Any

from ssl_asr.config.parts import Decoding, Languages, LongRecordings, ModelInput, Running
from ssl_asr.config.schemas import EvaluateConfig, TranscribeConfig
from ssl_asr.config.serving import ServeConfig
from ssl_asr.data.languages import language_code, language_tag
from ssl_asr.inference.long_form import LongForm
from ssl_asr.inference.model import InferenceOptions
from ssl_asr.inference.precision import weights_dtype
from ssl_asr.inference.running import RunOptions, inference_device
from ssl_asr.metrics.evaluation import Detail
from ssl_asr.training.module import ASRModule
from ssl_asr.training.trainer import check_accelerator
from ssl_asr.types import Downmix, Seconds


def inference_options(config: ModelInput) -> InferenceOptions:
    """Settings of the loaded model that a command can change.

    Raises:
        ConfigError: This machine does not have the accelerator.
    """
    options: dict[str, Any] = {"window": config.window, "tail_s": config.tail_s, "extensions": tuple(config.extensions)}
    if isinstance(config, Running | ServeConfig):
        check_accelerator(config.accelerator, 1)
        options |= {"weights": weights_dtype(config.precision, inference_device(config.accelerator))}
    if isinstance(config, Languages):
        options |= {"language": config.language, "whisper_task": config.whisper_task}
    if isinstance(config, Decoding):
        options |= {"decoder": config.decoder}
    # Keys of `evaluate` alone.
    more = ("max_tokens_per_s", "detect_language")
    options |= {key: getattr(config, key) for key in more if hasattr(config, key)}
    return InferenceOptions(**options)


def run_options(config: Running, module: ASRModule | None = None) -> RunOptions:
    """How a command runs a model over manifests. A config without ``downmix`` takes that of the module, or ``mean``."""
    trained: Downmix = "mean" if module is None else module.downmix
    # `transcribe` writes what it can before it counts what it skipped.
    keys = () if isinstance(config, TranscribeConfig) else ("on_bad_audio", "max_skip_fraction")
    skipping = {key: getattr(config, key) for key in keys if hasattr(config, key)}
    return RunOptions(
        max_batch_s=config.max_batch_s,
        num_workers=config.num_workers,
        accelerator=config.accelerator,
        downmix=trained if config.downmix is None else config.downmix,
        **skipping,
    )


def long_form(config: LongRecordings, max_batch_s: Seconds | None, *, check_short: bool) -> LongForm:
    """How a command splits long recordings and detects speech and language. See `LongForm` for ``check_short``."""
    return LongForm(
        chunk_s=config.chunk_s,
        stride_s=config.stride_s,
        batch_s=max_batch_s,
        vad=config.vad,
        check_short=check_short,
        detect_every_s=None if config.detect_every_min is None else 60 * config.detect_every_min,
    )


def report_detail(config: EvaluateConfig) -> Detail:
    """What an evaluation reports in addition to error rates."""
    return Detail(
        by=config.by,
        confusions=config.confusions,
        worst=config.worst,
        translation=config.whisper_task == "translate",
        language_code=language_code,
        language_tag=language_tag,
    )
