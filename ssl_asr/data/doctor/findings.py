"""What the check can find, and how bad each finding is.

======================  =======  =====================================================================================
finding                 level    meaning
======================  =======  =====================================================================================
missing_file            error    there is no such file; also ``unreadable_file``
empty_file              error    the file has 0 bytes; also ``no_samples``
not_audio               error    the file holds something else; also ``no_decoder``, ``bad_sample_rate``
decode_error            error    the file is truncated or corrupt
duration_mismatch       error    the audio ends before the manifest says
non_finite              error    NaN or infinite samples; also ``out_of_range``
no_such_channel         error    the file does not have the channel; also ``many_channels``
silent                  error    no sample is above -70 dB
empty_text              error    there is no text, before or after normalization
too_short, too_long     error    outside the limits of the model
too_many_tokens         error    the text does not fit into the decoder of the model
ctc_target_too_long     error    the text needs more frames than the audio has
unseen_labels           error    the tokenizer of the model cannot spell the text
duplicate_id            error    the id is that of an earlier line of the split
leaked_audio            error    the audio is also in a training split. The line is kept: the training line is not
in_evaluation           error    the audio of the training line is also in another split
rate_outlier            warning  far more or fewer characters per second than all others: another text or duration
text_mismatch           warning  a model transcribes the audio as another text
longer_than_manifest    warning  the file goes on after the duration of its only line
duplicate_audio         warning  the samples are those of an earlier line of the split
duplicate_path          warning  the file and span are those of an earlier line of the split
leaked_speaker          warning  the speaker of the training line is also in another split, and such lines are at most a
                                 tenth of training. Where more are, splits share speakers on purpose
leaked_text             warning  a long text is also in a training split
unseen_characters       warning  characters that no training split has
clipped, cut_off, …     warning  other findings of `ssl_asr.data.signal`
resampled               note     the sample rate is not 16 kHz
several_channels        note     channels become one
duplicate_text          note     the text is that of an earlier line of the split
shared_text             note     a short text is also in a training split
shared_speaker          note     the speaker is also in a training split
======================  =======  =====================================================================================
"""

from dataclasses import dataclass
from typing import Literal

from ssl_asr.types import Seconds, Skip, Utterance

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")

_WARNINGS = {
    *("rate_outlier", "text_mismatch", "longer_than_manifest", "duplicate_audio", "duplicate_path"),
    *("leaked_speaker", "leaked_text", "unseen_characters"),
    *("clipped", "cut_off", "damaged", "dc_offset", "over_range", "opposite_phase", "integers_as_floats"),
}
_NOTES = {"resampled", "several_channels", "duplicate_text", "shared_text", "shared_speaker"}
# Findings besides errors whose lines are left out of cleaned training manifests.
DROPPED = frozenset({"rate_outlier", "text_mismatch", "duplicate_audio", "duplicate_path", "leaked_speaker"})


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
        finding: Short name, see the table above.
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
