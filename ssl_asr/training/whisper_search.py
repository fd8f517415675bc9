"""Decode with Whisper: prompts, constraints on tokens, and temperature fallback.

for each utterance:  text = search(prompt)                       greedy or beam
while text fails its tests and a temperature is left:
text = sample(prompt, next temperature)                  seeded by the utterance, not by the batch
if no-speech probability is high and the text is unlikely:   text = ""
"""

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssl_asr.data.whisper_tokenizer import WhisperTokenizer
from ssl_asr.decoding.fusion.automata import Automaton
from ssl_asr.decoding.fusion.tables import LazyFusion
from ssl_asr.decoding.greedy import greedy_decode
from ssl_asr.decoding.seq2seq import WhisperDecoder
from ssl_asr.decoding.step_model import AtLeast, Constraints, Decoded, Rule, Suppression
from ssl_asr.decoding.timestamps import TimestampRules
from ssl_asr.models.encoder import EncoderOutput
from ssl_asr.models.whisper import WhisperSeq2Seq
from ssl_asr.types import Utterance


class WhisperSearch:
    """Decodes batches with a Whisper model. The tables of shallow fusion are kept between batches.

    Args:
        model: Encoder and decoder.
        tokenizer: Whisper's tokens.
        parts: Automata of shallow fusion; see `WhisperDecoder.parts`.
    """

    def __init__(
        self, model: WhisperSeq2Seq, tokenizer: WhisperTokenizer, parts: Sequence[Automaton[Any]] = ()
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._fusion = LazyFusion(parts, size=tokenizer.vocab_size, whole_rows=False)
        self._suppression = Suppression(
            always=tuple(model.generation.get("suppress_tokens") or ()),
            first=tuple(model.generation.get("begin_suppress_tokens") or ()),
        )

    def __call__(
        self, decoder: WhisperDecoder, out: EncoderOutput, utterances: Sequence[Utterance]
    ) -> list[list[Decoded]]:
        """Texts of each utterance, best first. Utterances with prompts of equal length are decoded together.

        Args:
            decoder: The ``decoder`` option.
            out: The encoder's output for the utterances.
            utterances: Each with its language if the model is multilingual.
        """
        prompts = [self._prompt(utterance, decoder) for utterance in utterances]
        found: dict[int, list[Decoded]] = {}
        for length in sorted({len(prompt) for prompt in prompts}):
            rows = [row for row, prompt in enumerate(prompts) if len(prompt) == length]
            own = out if len(rows) == len(prompts) else out.rows(rows)
            part = self._search(decoder, own, [utterances[row] for row in rows], [prompts[row] for row in rows])
            found |= dict(zip(rows, part, strict=True))
        return [found[row] for row in range(len(utterances))]

    def _prompt(self, utterance: Utterance, decoder: WhisperDecoder) -> list[int]:
        """The tokens before an utterance's text: the previous text if there is any, then the task's tokens."""
        before = utterance.tags.get("prompt", decoder.prompt)
        previous = self._tokenizer.previous(before) if before else []
        return [*previous, *self._tokenizer.prompt(utterance, timestamps=decoder.timestamps)]

    def _search(
        self,
        decoder: WhisperDecoder,
        out: EncoderOutput,
        utterances: Sequence[Utterance],
        prompts: list[list[int]],
    ) -> list[list[Decoded]]:
        """Texts of utterances whose prompts have one length, best first."""
        first, *others = decoder.temperatures
        if first == 0:
            found = decoder.search(
                self._model,
                out.h_BFD,
                out.context_lengths_B,
                prompts,
                constraints=self._constraints(decoder, utterances),
                scorers=decoder.scorers(self._fusion.on(out.h_BFD.device), len(utterances)),
            )
        else:
            found = [[self._sampled(decoder, out, row, utterances, prompts, first)] for row in range(len(utterances))]
        return self._with_fallback(decoder, found, others, out, utterances, prompts)

    def _constraints(self, decoder: WhisperDecoder, utterances: Sequence[Utterance]) -> Constraints:
        """What restricts the tokens of both searches: suppression, limits, timestamp rules, a minimum length."""
        tokenizer = self._tokenizer
        timestamp_rules = TimestampRules(
            begin=tokenizer.timestamp_begin_id,
            no_timestamps=tokenizer.no_timestamps_id,
            end=tokenizer.end_id,
            latest_first=self._model.generation.get("max_initial_timestamp_index"),
        )
        rules: list[Rule] = [timestamp_rules] if decoder.timestamps else []
        if decoder.min_tokens is not None:
            rules.append(AtLeast(tokens=decoder.min_tokens, end_id=tokenizer.end_id))
        return Constraints(
            end_id=tokenizer.end_id,
            suppression=self._suppression if decoder.suppress else Suppression(),
            limits=decoder.limits(utterances),
            rules=rules,
        )

    def _with_fallback(
        self,
        decoder: WhisperDecoder,
        found: list[list[Decoded]],
        temperatures: Sequence[float],
        out: EncoderOutput,
        utterances: Sequence[Utterance],
        prompts: list[list[int]],
    ) -> list[list[Decoded]]:
        """The texts. A text that fails its tests is sampled again at the next of the temperatures."""
        silence = self._no_speech(out) if decoder.no_speech is not None else [0.0] * len(found)
        for row, share in enumerate(silence):
            silent = decoder.no_speech is not None and share > decoder.no_speech
            for temperature in temperatures:
                best = found[row][0]
                if silent or not decoder.fails(self._tokenizer.decode(best.tokens), best.score):
                    break
                found[row] = [self._sampled(decoder, out, row, utterances, prompts, temperature)]
            score = found[row][0].score
            if silent and decoder.is_unlikely(score):
                found[row] = [Decoded([], score)]
        return found

    def _sampled(
        self,
        decoder: WhisperDecoder,
        out: EncoderOutput,
        row: int,
        utterances: Sequence[Utterance],
        prompts: list[list[int]],
        temperature: float,
    ) -> Decoded:
        """A text sampled for one utterance. Its seed depends on the utterance alone, not on the batch."""
        utterance = utterances[row]
        name = f"{utterance.id} {utterance.offset:.3f} {temperature}".encode()
        generator = torch.Generator(out.h_BFD.device).manual_seed(zlib.crc32(name))
        length = out.context_lengths_B[row : row + 1]
        [sampled] = greedy_decode(
            self._model,
            out.h_BFD[row : row + 1, : int(length)],
            length,
            [prompts[row]],
            constraints=self._constraints(decoder, [utterance]),
            temperature=temperature,
            generator=generator,
        )
        return sampled

    def _no_speech(self, out: EncoderOutput) -> list[float]:
        """Probability of the no-speech token for each utterance."""
        probabilities_BV = first_logits(self._model, out, self._tokenizer).float().softmax(-1)
        probabilities: list[float] = probabilities_BV[:, self._tokenizer.no_speech_id].tolist()
        return probabilities


def first_logits(model: WhisperSeq2Seq, out: EncoderOutput, tokenizer: WhisperTokenizer) -> Tensor:
    """Logits after the start token alone, ``logits_BV``: they predict the language, or no speech."""
    start_B1 = torch.full((len(out.h_BFD), 1), tokenizer.start_id, device=out.h_BFD.device)
    return model.step(start_B1, model.begin(out.h_BFD, out.context_lengths_B, 1))


def language_probabilities(
    model: WhisperSeq2Seq, out: EncoderOutput, tokenizer: WhisperTokenizer
) -> list[dict[str, float]]:
    """Probability of each language among all languages, for each utterance.

    Args:
        model: A multilingual checkpoint.
        out: The encoder's output.
        tokenizer: Names the languages.
    """
    logits_BV = first_logits(model, out, tokenizer)
    names = list(tokenizer.languages)
    ids = torch.tensor([tokenizer.languages[name] for name in names], device=logits_BV.device)
    probabilities_BV = logits_BV[:, ids].float().softmax(-1)
    return [dict(zip(names, row, strict=True)) for row in probabilities_BV.tolist()]
