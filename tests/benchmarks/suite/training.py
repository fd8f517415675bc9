"""Training steps against the models of transformers: equal weights and batches, random weights of the true shapes."""

import copy
import gc
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from ssl_asr.models.heads import only_linear
from ssl_asr.training.module import ASRModule
from ssl_asr.types import SAMPLE_RATE, Batch
from tests.benchmarks.suite.rows import Options, Row, closeness, cpu_setup, saved_mb, timed
from tests.gpu.steps import (
    ctc_batch,
    ssl_module,
    ssl_net_hf,
    training_step,
    whisper_batch,
    whisper_module,
    whisper_net_hf,
)

Loss = Callable[[], Tensor]


def _our_loss(module: ASRModule, batch: Batch, *, cached: bool = False) -> Loss:
    """The loss of a batch. With ``cached``, from encoder states that are computed beforehand, as a state cache does."""
    with torch.no_grad():
        out = module.eval().encode(batch) if cached else None
    module.train()

    def loss() -> Tensor:
        found = module.loss(batch, out)
        return found.total / found.count

    return loss


def _eval_check(ours: nn.Module, theirs: nn.Module, our_loss: Loss, their_loss: Loss) -> str:
    """Compares the losses of one batch without dropout."""
    ours.eval()
    theirs.eval()
    with torch.no_grad():
        found = closeness("loss without dropout", our_loss(), their_loss(), limit=1e-3)
    ours.train()
    theirs.train()
    return found


# SSL encoders with CTC.


def _ssl_pair(options: Options, name: str, durations: Sequence[float], *, frozen: bool, cached: bool = False):
    """Our module and that of transformers with equal weights, their losses of a batch, and the check."""
    setup = cpu_setup(options)
    theirs = ssl_net_hf(setup, name, frozen=frozen)
    ours = ssl_module(copy.deepcopy(theirs.base_model), frozen=frozen)
    only_linear(ours.head).load_state_dict(theirs.lm_head.state_dict())
    batch = ctc_batch(setup, durations)
    has_mask = theirs.config.feat_extract_norm == "layer"
    # Models with a group norm read no attention mask.
    assert has_mask or len(set(durations)) == 1
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=has_mask)
    inputs = {**extractor(_audio(batch), sampling_rate=SAMPLE_RATE, padding=True, return_tensors="pt")}
    inputs["labels"] = batch.tokens_BU

    def their_loss() -> Tensor:
        return theirs(**inputs).loss

    our_loss = _our_loss(ours, batch, cached=cached)
    return setup, ours, theirs, our_loss, their_loss, _eval_check(ours, theirs, our_loss, their_loss)


def _audio(batch: Batch) -> list[NDArray[np.float32]]:
    """The samples of each utterance."""
    return [row_T[:length].numpy() for row_T, length in zip(batch.waveform_BT, batch.lengths_B, strict=True)]


def _ssl_row(options: Options, *, row_id: str, name: str, what: str, frozen: bool, cached: bool = False) -> Row:
    durations = [1.5, 1.5] if options.quick else [6.0, 6.0]
    setup, ours, theirs, our_loss, their_loss, check = _ssl_pair(options, name, durations, frozen=frozen, cached=cached)
    steps = [training_step(setup, net, loss) for net, loss in ((ours, our_loss), (theirs, their_loss))]
    return timed(options, row_id, f"{what}, 2 x {durations[0]:g} s", "transformers", *steps, check=check)


def b3(options: Options) -> list[Row]:
    """wav2vec2 base, CTC, everything but the convolutions trains."""
    return [_ssl_row(options, row_id="B3", name="wav2vec2_base", what="wav2vec2 base + CTC, step", frozen=False)]


def b4(options: Options) -> list[Row]:
    """wav2vec2 large (layer norm, as HuBERT large and XLS-R), CTC, everything but the convolutions trains.

    Without the update, which is the same on both sides: the states of AdamW would take 2.5 GB on each.
    """
    rows = []
    for durations in ([3.0, 3.0], [1.5, 4.5]):
        rows.append(_large_row(options, durations))
        # Each row has two models of 1.3 GB.
        gc.collect()
    return rows


def _large_row(options: Options, durations: Sequence[float]) -> Row:
    _, ours, theirs, our_loss, their_loss, check = _ssl_pair(options, "wav2vec2_large", durations, frozen=False)
    sides = [_gradients(net, loss) for net, loss in ((ours, our_loss), (theirs, their_loss))]
    name = " + ".join(f"{seconds:g}" for seconds in durations)
    what = f"wav2vec2 large + CTC, forward, backward and clipping, {name} s"
    return timed(options, "B4", what, "transformers", *sides, check=check)


def _gradients(net: nn.Module, loss: Loss) -> Callable[[], None]:
    """Forward, backward and clipping. The gradients are freed."""
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]

    def step() -> None:
        loss().backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        net.zero_grad(set_to_none=True)

    return step


def b5(options: Options) -> list[Row]:
    """WavLM base: time of a step, and memory for its backward pass."""
    row = _ssl_row(options, row_id="B5", name="wavlm_base", what="WavLM base + CTC, step", frozen=False)
    return [row, _ssl_memory(options, "B5", "wavlm_base", "WavLM base + CTC")]


def b6(options: Options) -> list[Row]:
    """Frozen encoder with a linear CTC layer: time of a step, and memory for its backward pass."""
    what = "wav2vec2 base frozen + CTC"
    row = _ssl_row(options, row_id="B6", name="wav2vec2_base", what=f"{what}, step", frozen=True)
    return [row, _ssl_memory(options, "B6", "wav2vec2_base", what, frozen=True)]


def b7(options: Options) -> list[Row]:
    """Frozen encoder with cached states."""
    what = "wav2vec2 base frozen + CTC, cached states, step"
    return [_ssl_row(options, row_id="B7", name="wav2vec2_base", what=what, frozen=True, cached=True)]


def _ssl_memory(options: Options, row_id: str, name: str, what: str, *, frozen: bool = False) -> Row:
    durations = [1.5, 1.5] if options.quick else [6.0, 6.0]
    _, _, _, our_loss, their_loss, check = _ssl_pair(options, name, durations, frozen=frozen)
    return _memory_row(row_id, f"{what}, saved tensors, 2 x {durations[0]:g} s", our_loss, their_loss, check)


def _memory_row(row_id: str, what: str, our_loss: Loss, their_loss: Loss, check: str) -> Row:
    ours, theirs = saved_mb(our_loss), saved_mb(their_loss)
    figures = {"ours": ours, "theirs": theirs, "unit": "MB", "ratio": theirs / ours, "spread": None}
    return Row(id=row_id, what=what, peer="transformers", check=check, **figures)


# Whisper.


def _whisper_pair(options: Options, durations: Sequence[float], *, frozen: bool = False, cached: bool = False):
    """As `_ssl_pair`. The check has 30-s windows on both sides; the losses returned have real frames on ours."""
    setup = cpu_setup(options)
    theirs = whisper_net_hf(setup, "whisper_tiny").float().train()
    theirs.config.use_cache = False
    if frozen:
        theirs.freeze_encoder()
    batch = whisper_batch(setup, durations)
    make = partial(whisper_module, setup, "whisper_tiny", frozen=frozen)
    ours, whole = (make(window, net=copy.deepcopy(theirs.model)) for window in ("real", "30s"))
    extractor = WhisperFeatureExtractor(feature_size=theirs.config.num_mel_bins)
    mel_BMF = extractor(_audio(batch), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
    prompt_BP = torch.tensor([ours.tokenizer.prompt(utterance) for utterance in batch.utterances])
    inputs_BU = torch.cat([prompt_BP, batch.tokens_BU[:, :-1]], 1)
    labels_BU = torch.cat([torch.full_like(prompt_BP[:, 1:], -100), batch.tokens_BU], 1)

    def their_loss() -> Tensor:
        return theirs(input_features=mel_BMF, decoder_input_ids=inputs_BU, labels=labels_BU).loss

    check = _eval_check(whole, theirs, _our_loss(whole, batch), their_loss)
    return setup, ours, theirs, _our_loss(ours, batch, cached=cached), their_loss, f"at 30 s, {check}"


def _whisper_row(options: Options, row_id: str, what: str, duration: float, *, frozen: bool = False) -> Row:
    durations = [duration] * (2 if options.quick else 4)
    setup, ours, theirs, our_loss, their_loss, check = _whisper_pair(options, durations, frozen=frozen, cached=frozen)
    steps = [training_step(setup, net, loss) for net, loss in ((ours, our_loss), (theirs, their_loss))]
    what = f"{what}, {len(durations)} x {duration:g} s"
    return timed(options, row_id, what, "transformers, 30 s, features given", *steps, check=check)


def b1(options: Options) -> list[Row]:
    """Whisper tiny, everything trains, utterances as long as those of LibriSpeech."""
    return [_whisper_row(options, "B1", "Whisper tiny, step", 12.0)]


def b2(options: Options) -> list[Row]:
    """Whisper tiny, everything trains, utterances as long as those of Common Voice."""
    return [_whisper_row(options, "B2", "Whisper tiny, step", 5.3)]


def b8(options: Options) -> list[Row]:
    """Whisper's decoder on cached states of the frozen encoder."""
    what = "Whisper tiny, encoder frozen, cached states, step"
    return [_whisper_row(options, "B8", what, duration, frozen=True) for duration in (12.0, 5.3)]


def b22(options: Options) -> list[Row]:
    """Memory for the backward pass."""
    rows = [_ssl_memory(options, "B22", "wav2vec2_base", "wav2vec2 base + CTC")]
    _, _, _, our_loss, their_loss, check = _whisper_pair(options, [12.0] * 2)
    return [*rows, _memory_row("B22", "Whisper tiny, saved tensors, 2 x 12 s", our_loss, their_loss, check)]
