"""What the server answers: OpenAI's JSON, subtitles, server-sent events and errors."""

import json
import math
import zlib
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from ssl_asr.config.parts import SubtitleStyle
from ssl_asr.data.signal import notice_record
from ssl_asr.errors import UserError
from ssl_asr.inference.formats.segments import segments_in
from ssl_asr.inference.formats.text import clean
from ssl_asr.inference.formats.timeline import rows_language, timed_words, tracks
from ssl_asr.inference.subtitles import render
from ssl_asr.metrics.report import Prediction
from ssl_asr.serve.forms import TranscriptionForm
from ssl_asr.serve.jobs import Transcript
from ssl_asr.serve.models import ServedModel
from ssl_asr.types import Seconds, Segment, Word

# Kinds of errors, as OpenAI names them.
_TYPES = {
    401: "authentication_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    507: "server_error",
}


class Refusal(Exception):
    """A request that is not answered with a transcript.

    Args:
        status: HTTP status.
        message: What is wrong, and what to do.
        param: Field of the form. Default: None (no field).
        code: A short name. Default: None.
        retry_after_s: Seconds after which the client may try again. Default: None.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.retry_after_s = retry_after_s

    @classmethod
    def of(
        cls,
        error: UserError,
        status: int = HTTPStatus.BAD_REQUEST,
        code: str | None = None,
        *,
        param: str | None = None,
    ) -> "Refusal":
        """The refusal for an error of the client, by default in the field that the error names."""
        return cls(status, str(error), param=error.where if param is None else param, code=code)

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == HTTPStatus.UNAUTHORIZED else {})

    def body(self) -> dict[str, Any]:
        """The error as OpenAI writes it."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


# Transcripts ---------------------------------------------------------------------------------------------------------


def text_reply(row: Prediction, kind: str, style: SubtitleStyle) -> str:
    """A transcript as plain text or subtitles: ``text``, ``srt`` or ``vtt``."""
    return f"{clean(row.hyp)}\n" if kind == "text" else render([row], kind, style)


def json_reply(found: Transcript, form: TranscriptionForm, served: ServedModel, style: SubtitleStyle) -> dict[str, Any]:
    """A transcript as JSON: ``json`` or ``verbose_json``.

    If the check of the samples found something, such as a file that is cut off, the reply also has ``warnings``: a list
    of objects with ``code``, see `ssl_asr.data.signal`, and ``message``.
    """
    row = found.row
    usage = {"type": "duration", "seconds": math.ceil(row.duration)}
    reply: dict[str, Any] = {"text": clean(row.hyp), "usage": usage}
    if form.response_format == "verbose_json":
        language = "en" if form.task == "translate" else rows_language([row]) or served.language
        reply |= {"task": form.task, "language": language or "unknown", "duration": round(row.duration, 3)}
        if "segment" in form.granularities:
            reply["segments"] = [_segment(number, one, row) for number, one in enumerate(segments_of_row(row))]
        if "word" in form.granularities:
            reply["words"] = words_reply(timed_words(row))
    if found.notices:
        reply["warnings"] = [notice_record(one) for one in found.notices]
    return reply | {kind: render([row], kind, style) for kind in form.include}


def segments_of_row(row: Prediction) -> list[Segment]:
    """Segments of a transcript: those of the model, or else phrases, as in ``ssl-asr transcribe format=json``."""
    return [segment for track in tracks([row]) for segment in segments_in(track)]


def words_reply(words: Sequence[Word]) -> list[dict[str, Any]]:
    """Words as OpenAI writes them, with their probability."""
    return [
        {
            "word": word.text,
            "start": _seconds(word.start),
            "end": _seconds(word.end),
            "probability": round(word.confidence, 4),
        }
        for word in words
    ]


def _segment(number: int, segment: Segment, row: Prediction) -> dict[str, Any]:
    """A segment with all keys of OpenAI's.

    ``avg_logprob`` is the score of the text. Tokens are not returned. Parts without speech are never decoded, so
    ``no_speech_prob`` is 0.
    """
    encoded = segment.text.encode()
    return {
        "id": number,
        "seek": 0,
        "start": _seconds(segment.start),
        "end": _seconds(segment.end),
        "text": segment.text,
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": round(row.score, 4),
        "compression_ratio": round(len(encoded) / len(zlib.compress(encoded)), 3),
        "no_speech_prob": 0.0,
    }


def _seconds(seconds: Seconds) -> Seconds:
    return round(seconds, 3)


# Server-sent events --------------------------------------------------------------------------------------------------


def event(data: dict[str, Any]) -> str:
    """A server-sent event with the name that its ``type`` gives."""
    name = f"event: {data['type']}\n" if "type" in data else ""
    return f"{name}data: {json.dumps(data, ensure_ascii=False)}\n\n"


def segment_events(number: int, segment: Segment, form: TranscriptionForm) -> str:
    """``transcript.text.delta`` with the text of a segment, and ``transcript.text.segment`` with its times."""
    name = f"seg_{number}"
    spaced = number > 0 and (not segment.words or segment.words[0].spaced)
    delta = f" {segment.text}" if spaced else segment.text
    timed: dict[str, Any] = {"type": "transcript.text.segment", "id": name, "speaker": "", "text": segment.text}
    timed |= {"start": _seconds(segment.start), "end": _seconds(segment.end)}
    if "word" in form.granularities:
        timed["words"] = words_reply(segment.words)
    return event({"type": "transcript.text.delta", "delta": delta, "segment_id": name}) + event(timed)


def done_event(reply: dict[str, Any]) -> str:
    """``transcript.text.done`` with the JSON of the whole transcript."""
    return event({"type": "transcript.text.done"} | reply)
