"""Parts of a run, each against the same part of another library."""

import importlib.util
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2Model, WhisperFeatureExtractor

from ssl_asr.decoding.ctc import greedy_search
from ssl_asr.decoding.ctc_prefix import CtcPrefixScorer
from ssl_asr.models.ssl_stem import conv_stem
from ssl_asr.models.whisper import LogMel
from ssl_asr.training.ctc_loss import ctc_losses
from ssl_asr.training.seq2seq import _target_rows
from ssl_asr.types import SAMPLE_RATE
from tests.benchmarks.suite.rows import Options, Row, closeness, saved_mb, timed
from tests.benchmarks.test_batching import SAMPLERS, figures, librispeech_lengths
from tests.gpu.ctc import make_case


def b9(options: Options) -> list[Row]:
    """The convolutions of wav2vec2 and their gradients: with a group norm, as in base models, and with layer norms."""
    group, layer = (_convolutions(options, norm) for norm in ("group", "layer"))
    rows = []
    for name, sides in (("forward", (group.ours, group.theirs)), ("forward and backward", group.gradients())):
        rows.append(timed(options, "B9", f"{group.what}, {name}", "transformers", *sides, check=group.check()))
    what = f"{layer.what}, forward and backward"
    return [*rows, timed(options, "B9", what, "transformers", *layer.gradients(), check=layer.check())]


@dataclass(frozen=True)
class _Convolutions:
    """Both sides of the convolutions of wav2vec2, with equal weights."""

    what: str
    stem: nn.Module
    waveform_BT: Tensor

    def ours(self) -> Tensor:
        batch, samples = self.waveform_BT.shape
        lengths_B = torch.full((batch,), samples)
        return conv_stem(self.stem.conv_layers, self.waveform_BT, lengths_B, recompute=False)[0]

    def theirs(self) -> Tensor:
        return self.stem(self.waveform_BT).transpose(1, 2)

    def gradients(self) -> list[Callable[[], object]]:
        parameters = list(self.stem.parameters())
        return [lambda side=side: torch.autograd.grad(side().sum(), parameters) for side in (self.ours, self.theirs)]

    def check(self) -> str:
        return closeness("output", self.ours(), self.theirs(), limit=1e-4)


def _convolutions(options: Options, norm: str) -> _Convolutions:
    small = {"conv_dim": [16] * 7} if options.quick else {}
    config = Wav2Vec2Config(feat_extract_norm=norm, conv_bias=norm == "layer", **small)
    batch, seconds = (2, 1) if options.quick else (4 if norm == "group" else 2, 12)
    what = f"convolutions of wav2vec2, {norm} norm, {batch} x {seconds} s"
    stem = Wav2Vec2Model(config).feature_extractor.train()
    return _Convolutions(what, stem, torch.randn(batch, seconds * SAMPLE_RATE))


def b10(options: Options) -> list[Row]:
    """CTC loss and its gradient."""
    rows = []
    batch, frames, labels = (4, 100, 20) if options.quick else (32, 599, 150)
    for vocabulary in (32, 1000):
        case = make_case("cpu", [frames] * batch, [labels] * batch, vocabulary=vocabulary)
        logits_BFV = case.logits_BFV.requires_grad_()

        def ours(case=case, logits_BFV=logits_BFV) -> Tensor:
            losses_B = ctc_losses(logits_BFV, case.frame_lengths_B, case.labels_BU, case.label_lengths_B)
            return torch.autograd.grad(losses_B.mean(), logits_BFV)[0]

        def theirs(case=case, logits_BFV=logits_BFV) -> Tensor:
            # The body of transformers' ``ForCTC`` models.
            log_probs_FBV = functional.log_softmax(logits_BFV, dim=-1, dtype=torch.float32).transpose(0, 1)
            targets = case.labels_BU.masked_select(case.labels_BU >= 0)
            lengths = (case.frame_lengths_B, case.label_lengths_B)
            loss = functional.ctc_loss(log_probs_FBV, targets, *lengths, reduction="mean", zero_infinity=True)
            return torch.autograd.grad(loss, logits_BFV)[0]

        check = closeness("gradient", ours(), theirs(), limit=1e-6)
        what = f"CTC loss and gradient, B={batch}, F={frames}, V={vocabulary}"
        rows.append(timed(options, "B10", what, "transformers' ForCTC", ours, theirs, check=check))
    return rows


def b11(options: Options) -> list[Row]:
    """Output layer and cross-entropy of the decoder's rows that are not padding."""
    batch, width, size = (4, 16, 500) if options.quick else (8, 112, 51_866)
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(size, 768, generator=draw).mul_(0.02).requires_grad_()
    states_BUD = torch.randn(batch, width, 768, generator=draw).requires_grad_()
    lengths_B = torch.randint(width // 8, width // 2, (batch,), generator=draw)
    lengths_B[0] = width
    targets_BU = torch.randint(size, (batch, width), generator=draw)
    inside_BU = torch.arange(width) < lengths_B[:, None]

    def our_loss() -> Tensor:
        rows_N = _target_rows(lengths_B, 0, width)
        return functional.cross_entropy(states_BUD.flatten(0, 1)[rows_N] @ weight.T, targets_BU.flatten()[rows_N])

    def their_loss() -> Tensor:
        labels_BU = targets_BU.masked_fill(~inside_BU, -100)
        return functional.cross_entropy((states_BUD @ weight.T).flatten(0, 1), labels_BU.flatten())

    def gradient(loss) -> Tensor:
        return torch.autograd.grad(loss(), states_BUD)[0]

    check = closeness("gradient", gradient(our_loss), gradient(their_loss), limit=1e-6)
    what = f"output layer and cross-entropy, {int(lengths_B.sum())} of {batch * width} rows are tokens"
    peer = "CrossEntropyLoss of all rows"
    row = timed(options, "B11", what, peer, lambda: gradient(our_loss), lambda: gradient(their_loss), check=check)
    ours, theirs = saved_mb(our_loss), saved_mb(their_loss)
    memory = {"ours": ours, "theirs": theirs, "unit": "MB", "ratio": theirs / ours, "spread": None}
    return [row, Row(id="B11", what="the same, saved tensors", peer=peer, check=check, **memory)]


def b13(options: Options) -> list[Row]:
    """Log-mel features of 16 utterances."""
    ours, extractor = LogMel(n_mels=80), WhisperFeatureExtractor(feature_size=80)
    rows = []
    for seconds in (12.0, 5.0):
        draw = np.random.default_rng(0)
        count = 2 if options.quick else 16
        audio = [0.1 * draw.standard_normal(int(seconds * SAMPLE_RATE)).astype(np.float32) for _ in range(count)]
        waveform_BT, frames = torch.from_numpy(np.stack(audio)), int(seconds * 100)

        def theirs(audio=audio) -> Tensor:
            return extractor(audio, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features

        check = closeness("30-s log-mel", ours(waveform_BT, 3000), theirs(), limit=1e-3)
        what = f"log-mel, {count} x {seconds:g} s at real length"
        own = (lambda waveform_BT=waveform_BT, frames=frames: ours(waveform_BT, frames), theirs)
        rows.append(timed(options, "B13", what, "WhisperFeatureExtractor, 30 s", *own, check=check))
    return rows


def b14(options: Options) -> list[Row]:
    """Padding of the batches of 8 ranks, and CPU time for them."""
    durations = librispeech_lengths(2000 if options.quick else 50_000)
    found = {}
    for name in ("ours", "transformers, group_by_length", "lhotse, DynamicBucketingSampler"):
        began = time.process_time()
        plans = SAMPLERS[name](durations, 8)
        found[name] = figures(name, durations, plans, time.process_time() - began)
    ours, *peers = found.values()
    assert ours["over budget"] == ours["left out"] == ours["repeated"] == 0
    rows = []
    for peer in peers:
        check = f"ours has each of {len(durations)} utterances once; {peer['sampler']} repeats {peer['repeated']}"
        for column, unit in (("padding, %", "% padding"), ("max / mean of a step", "max / mean"), ("CPU s", "CPU s")):
            own = {"ours": ours[column], "theirs": peer[column], "unit": unit, "spread": None}
            ratio = peer[column] / max(ours[column], 0.01)
            rows.append(Row(id="B14", what="batches of 8 ranks", peer=peer["sampler"], ratio=ratio, check=check, **own))
    return rows


def b15(options: Options) -> list[Row]:
    """CTC greedy search, from log-probabilities to texts."""
    labels = ["<pad>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz'"]
    folder = Path(tempfile.mkdtemp())
    (folder / "vocab.json").write_text(json.dumps({label: i for i, label in enumerate(labels)}))
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), unk_token="<unk>", pad_token="<pad>")
    draw = torch.Generator().manual_seed(0)
    batch, frames = (2, 50) if options.quick else (32, 600)
    # Words of three letters, each letter twice, with blanks in between.
    path_BF = torch.randint(3, len(labels), (batch, frames // 4 + 1), generator=draw).repeat_interleave(4, 1)[
        :, :frames
    ]
    path_BF[:, 2::4] = 0
    path_BF[:, 5::16] = 2
    log_probs_BFV = (8.0 * functional.one_hot(path_BF, len(labels))).float().log_softmax(-1)
    lengths_B = torch.full((batch,), frames)

    def ours() -> list[str]:
        found = greedy_search(log_probs_BFV, lengths_B)
        return [" ".join("".join(labels[i] for i in best.tokens).replace("|", " ").split()) for [best] in found]

    def theirs() -> list[str]:
        return [" ".join(text.split()) for text in tokenizer.batch_decode(log_probs_BFV.argmax(-1))]

    assert ours() == theirs()
    assert all(len(text.split()) > 1 for text in itertools.islice(ours(), 3))
    what = f"CTC greedy search to text, {batch} x {frames} frames"
    check = f"{batch} of {batch} texts equal"
    return [timed(options, "B15", what, "Wav2Vec2CTCTokenizer.batch_decode", ours, theirs, check=check)]


def b19(options: Options) -> list[Row]:
    """CTC scores of the prefixes of a joint beam search: the same random tokens on both sides."""
    if importlib.util.find_spec("speechbrain") is None:
        return []
    batch, beams, frames, size, steps = (2, 3, 20, 30, 3) if options.quick else (4, 10, 150, 5000, 8)
    draw = torch.Generator().manual_seed(0)
    log_probs_BFV = torch.randn(batch, frames, size, generator=draw).mul_(3).log_softmax(-1)
    lengths_B, end = torch.full((batch,), frames), size - 1
    tokens_SN = torch.stack([torch.randperm(size - 2, generator=draw)[: batch * beams] + 1 for _ in range(steps)])
    rows_N = torch.arange(batch * beams)
    # Both score the candidates of the decoder and the end.
    candidates = 2 * beams
    decoder_SNV = torch.randn(steps, batch * beams, size, generator=draw)
    decoder_SNV.scatter_(2, tokens_SN[..., None], 100.0)

    def ours() -> Tensor:
        scorer = CtcPrefixScorer(log_probs_BFV, lengths_B, beams=beams, blank=0, weight=1.0, candidates=candidates)
        found = []
        for tokens_N, decoder_NV in zip(tokens_SN, decoder_SNV, strict=True):
            found.append(scorer.scores(decoder_NV, end)[rows_N, tokens_N])
            scorer.select(rows_N, tokens_N)
        return torch.stack(found)

    def theirs() -> Tensor:
        from speechbrain.decoders.ctc import CTCPrefixScore

        scorer, state = CTCPrefixScore(log_probs_BFV.clone(), lengths_B, 0, end), None
        found, last_N = [], torch.zeros(batch * beams, dtype=torch.int64)
        for tokens_N, decoder_NV in zip(tokens_SN, decoder_SNV, strict=True):
            candidates_NC = decoder_NV.topk(candidates, dim=1).indices
            scores_NV, memory = scorer.forward_step(last_N, state, candidates_NC)
            found.append(scores_NV[rows_N, tokens_N])
            chosen_BK = (rows_N % beams * size + tokens_N).view(batch, beams)
            state, last_N = scorer.permute_mem(memory, chosen_BK), tokens_N
        return torch.stack(found)

    check = closeness("score", ours(), theirs(), limit=1e-3)
    what = f"CTC scores of joint decoding, {batch} x {beams} beams, {frames} frames, V={size}, {steps} tokens"
    return [timed(options, "B19", what, "SpeechBrain's CTCPrefixScore", ours, theirs, check=check)]
