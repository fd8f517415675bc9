"""From the configuration of commands to the options of inference."""

from types import SimpleNamespace

import pytest

from ssl_asr.config.schemas import TranscribeConfig
from ssl_asr.inference.long_form import LongForm
from ssl_asr.inference.options import inference_options, long_form, run_options


def _config(**changes):
    return TranscribeConfig(**({"model": "m", "input": ["a.wav"], "chunk_s": 20.0, "stride_s": 3.0} | changes))


@pytest.mark.parametrize(("minutes", "seconds"), [(None, None), (2.5, 150.0), (10.0, 600.0)])
def test_the_language_is_detected_again_after_minutes(minutes, seconds):
    form = long_form(_config(detect_every_min=minutes, vad=True), 77.0, check_short=False)
    assert form == LongForm(
        chunk_s=20.0, stride_s=3.0, batch_s=77.0, vad=True, check_short=False, detect_every_s=seconds
    )


def test_options_of_the_run_and_of_the_model():
    config = _config(max_batch_s=33.0, num_workers=3, accelerator="cpu", downmix="first", language="nl")
    run = run_options(config)
    assert (run.max_batch_s, run.num_workers, run.accelerator, run.downmix) == (33.0, 3, "cpu", "first")
    module = SimpleNamespace(downmix="refuse")
    assert run_options(config, module).downmix == "first"
    assert run_options(_config(), module).downmix == "refuse", "as the model was trained"
    assert run_options(_config()).downmix == "mean"
    options = inference_options(config)
    assert (options.language, options.whisper_task, options.decoder) == ("nl", "transcribe", config.decoder)
    assert (options.max_tokens_per_s, options.detect_language, options.extensions) == (None, False, ())
