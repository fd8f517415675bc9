"""How recordings of any length are split, and where voice activity detection is used."""

from dataclasses import dataclass

from ssl_asr.errors import ConfigError
from ssl_asr.training.module import ASRModule
from ssl_asr.types import Seconds, Utterance


@dataclass(frozen=True, kw_only=True)
class LongForm:
    """Settings for recordings that are too long for one pass, and for voice activity detection.

    Attributes:
        chunk_s: Length of a window in seconds. Recordings up to this length are transcribed in one pass.
        stride_s: Seconds at either end of a window that only provide context.
        batch_s: Computed seconds in a batch of windows or parts. None for the default of the encoder, see
            `SpeechEncoder.budget_s`.
        vad: Voice activity detection, with any model. True transcribes the parts with speech of every recording.
            None transcribes the parts with speech of long recordings, and short recordings whole if they have speech.
            False uses no voice activity detection.
        check_short: With ``vad`` None, give short recordings without speech an empty text.
        detect_every_s: Detect the language for each stretch of this length. None detects it once.
    """

    chunk_s: Seconds
    stride_s: Seconds
    batch_s: Seconds | None = None
    vad: bool | None = None
    check_short: bool = True
    detect_every_s: Seconds | None = None


NO_VAD = LongForm(chunk_s=30.0, stride_s=4.0, vad=False)
"""Short recordings are transcribed whole, with or without speech."""


def check_detection(module: ASRModule, long_form: LongForm, lang: str | None = None) -> None:
    """Refuse settings of language detection that do not go with the model.

    Args:
        module: The model.
        long_form: Settings.
        lang: Language of the recordings. None if it is not given.

    Raises:
        ConfigError: The language would be detected again, but it is not detected at all, or not by part.
    """
    if long_form.detect_every_s is None:
        return
    if long_form.vad is False:
        what = "needs voice activity detection, which finds the parts whose language is detected"
        raise ConfigError("detect_every_min", what, "remove vad=false")
    if not module.detects_language(Utterance("", "", 0.0, lang=lang)):
        what = "this model does not detect the language, or the language is given"
        raise ConfigError("detect_every_min", what, "use a multilingual Whisper without language=…")
