"""Fine-tune pretrained speech models; importing the package imports no torch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_asr.inference.transcriber import Transcriber

__version__ = "0.1.0"


def load(model: str, **options: Any) -> "Transcriber":
    """A model that transcribes: see `ssl_asr.inference.transcriber.load` for the options.

    Example::

        model = ssl_asr.load("outputs/mine", times="max_prob")
        for word in model.transcribe("recording.wav")[0].words:
            print(word.start, word.text)

    Without ``times``, ``words`` is an empty list.
    """
    from ssl_asr.inference.transcriber import load as load_transcriber

    return load_transcriber(model, **options)
