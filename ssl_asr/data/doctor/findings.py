"""What the check can find, how bad each finding is, and what it means. `MEANINGS` has all of them."""

from dataclasses import dataclass
from typing import Literal

from ssl_asr.types import Seconds, Skip, Utterance

Level = Literal["error", "warning", "note"]
LEVELS: dict[Level, str] = {
    "error": "The line cannot be used, or makes an evaluation wrong. The cleaned manifest is without it.",
    "warning": "The line may not be what was meant. For some warnings, cleaned training manifests are without it.",
    "note": "Worth knowing. The line stays.",
}
"""Levels of findings, the worst one first, and what they mean."""

_ERRORS = {
    "invalid_line": "the line is no JSON object with the keys of a manifest",
    "missing_file": "there is no such file",
    "unreadable_file": "the file cannot be opened",
    "empty_file": "the file has 0 bytes",
    "missing_member": "the tar has no such member",
    "bad_shard": "the file is not a tar",
    "compressed_shard": "the tar is compressed, so that its members have no fixed places",
    "changed_shard": "the tar has another member at this place",
    "truncated_shard": "the tar ends before the member does",
    "protocol": "audio cannot be read by this protocol",
    "unreachable": "the address cannot be reached",
    "no_ranges": "the server sends whole files only",
    "cache": "the folder of downloaded shards cannot be written",
    "other_rate": "the sample rate is not 16 kHz, and data.resample=false",
    "no_samples": "the file has a header, and no audio",
    "not_audio": "the file holds something else",
    "no_decoder": "FFmpeg has no decoder for the audio",
    "bad_sample_rate": "the header has no usable sample rate",
    "decode_error": "the file is truncated or corrupt",
    "duration_mismatch": "the audio ends before the manifest says",
    "non_finite": "samples are NaN or infinite",
    "out_of_range": "samples are larger than any format has them",
    "no_such_channel": "the file does not have the channel",
    "many_channels": "the file has several channels, and downmix=refuse",
    "empty_text": "there is no text, before or after normalization",
    "too_short": "shorter than the model takes",
    "too_long": "longer than the model takes",
    "too_many_tokens": "the text does not fit into the decoder of the model",
    "ctc_target_too_long": "the text needs more frames than the audio has",
    "unseen_labels": "the tokenizer of the model cannot spell the text",
    "duplicate_id": "the id is that of an earlier line of the split",
    "leaked_audio": "the audio is also in a training split. The line is kept: the training line is not",
    "in_evaluation": "the audio of the training line is also in another split",
}
_WARNINGS = {
    "silent": "no sample is above -70 dB. Training on it with a text teaches a model to invent texts",
    "impossible_rate": "more characters per second than anybody speaks: another text or duration",
    "rate_outlier": "far more or fewer characters per second than all others: another text or duration",
    "text_mismatch": "a model transcribes the audio as another text",
    "longer_than_manifest": "the file goes on after the duration of its only line",
    "duplicate_audio": "the samples are those of an earlier line of the split",
    "duplicate_path": "the file and span are those of an earlier line of the split",
    "leaked_speaker": "the speaker of the training line is also in another split, and such lines are at most a tenth of"
    " training. Where more are, splits share speakers on purpose",
    "leaked_text": "a long text is also in a training split",
    "unseen_characters": "characters that no training split has",
    "clipped": "over 1 % of the samples are at full scale, so that peaks are cut off",
    "cut_off": "the file ends before its header says",
    "damaged": "packets of the file could not be decoded and were left out",
    "dc_offset": "the mean of the samples is above 5 % of full scale",
    "over_range": "samples are above full scale",
    "opposite_phase": "channels cancel when mixed, so that one of them is used",
    "integers_as_floats": "samples are integers that are stored as floats, and were scaled",
}
_NOTES = {
    "resampled": "the sample rate is not 16 kHz",
    "several_channels": "channels become one",
    "duplicate_text": "the text is that of an earlier line of the split",
    "shared_text": "a short text is also in a training split",
    "shared_speaker": "the speaker is also in a training split",
}
MEANINGS = _ERRORS | _WARNINGS | _NOTES
"""What each finding means."""

# Findings besides errors whose lines are left out of cleaned training manifests.
DROPPED = frozenset(
    {
        "silent",
        "impossible_rate",
        "rate_outlier",
        "text_mismatch",
        "duplicate_audio",
        "duplicate_path",
        "leaked_speaker",
    }
)


def level_of(finding: str) -> Level:
    """How bad a finding is."""
    return "warning" if finding in _WARNINGS else "note" if finding in _NOTES else "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding in a line of a manifest.

    Attributes:
        split: Name of the manifest.
        id: Id of the utterance.
        where: ``file:line``.
        finding: Short name, see `MEANINGS`.
        detail: The values seen.
        duration: Seconds of the utterance.
    """

    split: str
    id: str
    where: str
    finding: str
    detail: str
    duration: Seconds = 0.0

    @classmethod
    def of(cls, split: str, utterance: Utterance, finding: str, detail: str) -> "Finding":
        """A finding in an utterance."""
        return cls(split, utterance.id, utterance.where, finding, detail, utterance.duration)

    @property
    def level(self) -> Level:
        """How bad it is."""
        return level_of(self.finding)

    def drops(self, *, trains: bool) -> bool:
        """Whether the line is left out of the cleaned manifest.

        Args:
            trains: Whether the manifest is for training. Other manifests lose only what cannot be used, so that no
                heuristic and no model decides what is tested.
        """
        if self.level == "error":
            return self.finding != "leaked_audio"
        return trains and self.finding in DROPPED

    def skip(self) -> Skip:
        """The reason why the line is left out."""
        return Skip(self.id, self.where, self.finding, self.detail, self.duration)
