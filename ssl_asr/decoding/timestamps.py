"""Whisper's timestamps: the rules its tokens follow, and the phrases they mark (Radford et al., 2022, section 4.5)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_asr.types import Seconds, Word

# A timestamp token stands for so many seconds more than the one before it.
TIMESTAMP_S: Seconds = 0.02


@dataclass(frozen=True, slots=True)
class TimestampRules:
    """What may follow, of timestamps and text; a rule of `ssl_asr.decoding.seq2seq.greedy`.

    A text begins with a timestamp; timestamps come in pairs, do not decrease, and are taken where all of them
    together are likelier than any word.

    Attributes:
        begin: the id of the timestamp 0.00.
        no_timestamps: the id that asks for none.
        end: the id that ends a text.
        latest_first: the most the first timestamp may be, in tokens; None for no limit.
    """

    begin: int
    no_timestamps: int
    end: int
    latest_first: int | None

    def __call__(self, logits_BV: Tensor, history_BU: Tensor) -> Tensor:
        """Logits with what is forbidden at minus infinity, after the tokens chosen so far."""
        begin = self.begin
        logits_BV[:, self.no_timestamps] = -torch.inf
        if history_BU.shape[1] == 0:
            logits_BV[:, :begin] = -torch.inf
            if self.latest_first is not None:
                logits_BV[:, begin + self.latest_first + 1 :] = -torch.inf
            return logits_BV
        is_time_BU = history_BU >= begin
        last_B = is_time_BU[:, -1]
        before_B = is_time_BU[:, -2] if history_BU.shape[1] >= 2 else torch.ones_like(last_B)
        ids_V = torch.arange(logits_BV.shape[1], device=logits_BV.device)
        is_time_V = ids_V >= begin
        latest_B = torch.where(is_time_BU, history_BU, 0).amax(1)
        # A phrase's end may begin the next one, but a phrase takes some time.
        least_B = torch.where(last_B & ~before_B, latest_B, latest_B + 1)
        forbidden_BV = is_time_V & (last_B & before_B)[:, None]
        forbidden_BV |= (ids_V < self.end) & (last_B & ~before_B)[:, None]
        forbidden_BV |= is_time_V & (ids_V < least_B[:, None]) & (latest_B > 0)[:, None]
        logits_BV = logits_BV.masked_fill(forbidden_BV, -torch.inf)
        times_B = logits_BV[:, begin:].logsumexp(-1)
        text_B = logits_BV[:, :begin].amax(-1)
        return logits_BV.masked_fill((times_B > text_B)[:, None] & ~is_time_V, -torch.inf)


def phrases(
    tokens: Sequence[int], *, begin: int, duration: Seconds, decode: Callable[[list[int]], str], score: float
) -> tuple[list[Word], Seconds]:
    """The phrases of a window and how far it is heard: where the next window should start, in seconds of this one.

    What follows the last pair of timestamps is not finished: it is left to the next window. A window that ends in a
    single timestamp, or has no pair, is heard to its end.

    Args:
        tokens: as chosen, the end left out.
        begin: the id of the timestamp 0.00.
        duration: seconds of audio in the window.
        decode: tokens to text; timestamps among them are left out.
        score: of the window; phrases are as sure as it.
    """
    is_time = [token >= begin for token in tokens]
    cuts = [i + 1 for i in range(len(tokens) - 1) if is_time[i] and is_time[i + 1]]
    ends_single = is_time[-2:] == [False, True]
    if ends_single and cuts:
        cuts.append(len(tokens))
    made: list[Word] = []
    if not cuts:
        times = [token for token in tokens if token >= begin]
        end = (times[-1] - begin) * TIMESTAMP_S if times and times[-1] > begin else duration
        start = (times[0] - begin) * TIMESTAMP_S if times and len(times) > 1 else 0.0
        text = decode(list(tokens))
        return ([Word(text, start, min(end, duration), score)] if text else []), duration
    first = 0
    for cut in cuts:
        own = tokens[first:cut]
        start, end = ((token - begin) * TIMESTAMP_S for token in (own[0], own[-1]))
        text = decode(list(own))
        if text:
            made.append(Word(text, min(start, duration), min(end, duration), score))
        first = cut
    heard = duration if ends_single else (tokens[cuts[-1] - 1] - begin) * TIMESTAMP_S
    return made, heard if heard > 0 else duration
