"""Encoders on utterances of unequal lengths, against transformers' layers on padded rows with a mask."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, Wav2Vec2BertConfig

from ssl_asr.models.encoder import SpeechEncoder, padding_mask
from ssl_asr.models.ssl import SSLEncoder
from ssl_asr.models.ssl_stem import normalize_waveform
from ssl_asr.models.w2v_bert import W2vBertEncoder
from ssl_asr.models.whisper import HOP, WhisperEncoder
from ssl_asr.types import Batch
from tests.benchmarks.suite.rows import Options, Row, closeness, cpu_setup, saved_mb, timed
from tests.gpu.encoder import w2v_bert_states, wav2vec2_states, whisper_states
from tests.gpu.steps import make_batch, ssl_net_hf, whisper_module, whisper_net_hf


@dataclass(frozen=True)
class _Case:
    """An encoder, and how transformers computes its states with the same weights.

    Attributes:
        name: Name of the model.
        encoder: Ours.
        alone: From the encoder, and waveform and length of one utterance: its states by transformers, without a mask.
        padded: From the encoder and a batch: the padded states by transformers, with a mask.
        durations: Seconds of the utterances.
    """

    name: str
    encoder: SpeechEncoder
    alone: Callable[..., Tensor]
    padded: Callable[..., Tensor]
    durations: list[float]


def _mask(lengths_B: Tensor, width: int) -> Tensor:
    mask_BX = padding_mask(lengths_B, width, torch.device("cpu"))
    assert mask_BX is not None
    return mask_BX


def _wav2vec2_padded(encoder: SSLEncoder, batch: Batch) -> Tensor:
    inputs_BT = normalize_waveform(batch.waveform_BT, batch.lengths_B)
    mask_BT = _mask(batch.lengths_B, inputs_BT.shape[1]).long()
    return encoder.net(inputs_BT, attention_mask=mask_BT).last_hidden_state


def _w2v_bert_padded(encoder: W2vBertEncoder, batch: Batch) -> Tensor:
    features_BFM = encoder.filter_banks(batch.waveform_BT, batch.lengths_B)
    mask_BF = _mask(encoder.frame_lengths(batch.lengths_B), features_BFM.shape[1]).long()
    return encoder.net(features_BFM, attention_mask=mask_BF).last_hidden_state


def _whisper_padded(encoder: WhisperEncoder, batch: Batch) -> Tensor:
    """transformers' encoder takes windows of 30 s only, so its layers are called one by one."""
    net, mel_lengths_B = encoder.net, -(-encoder._context_samples(batch.lengths_B) // HOP)
    mel_BMF = encoder.log_mel.of_lengths(batch.waveform_BT, mel_lengths_B)
    mask_B1F = _mask(mel_lengths_B, mel_BMF.shape[-1])[:, None]
    x = functional.gelu(net.conv1(mel_BMF * mask_B1F))
    h_BFD = functional.gelu(net.conv2(x * mask_B1F)).transpose(1, 2)
    h_BFD = h_BFD + net.embed_positions.weight[: h_BFD.shape[1]]
    # The second convolution halves the frame rate.
    mask_B11F = mask_B1F[:, None, :, ::2]
    for layer in net.layers:
        h_BFD = layer(h_BFD, mask_B11F)
    return net.layer_norm(h_BFD)


def _cases(options: Options) -> Iterator[_Case]:
    setup = cpu_setup(options)
    for name, kind in (("wav2vec2 base", "wav2vec2_base"), ("WavLM base", "wavlm_base")):
        encoder = SSLEncoder(net=ssl_net_hf(setup, kind, frozen=False).base_model, normalize=True)
        yield _Case(name, encoder, wav2vec2_states, _wav2vec2_padded, [4.0, 5.0, 6.0, 8.0])
    size = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 64} if options.quick else {}
    config = Wav2Vec2BertConfig(num_hidden_layers=2, layerdrop=0.0, apply_spec_augment=False, **size)
    encoder = W2vBertEncoder(net=AutoModel.from_config(config))
    yield _Case("w2v-BERT 2.0, two layers", encoder, w2v_bert_states, _w2v_bert_padded, [2.0, 3.0, 5.0, 8.0])
    net = whisper_net_hf(setup, "whisper_tiny").model
    encoder = whisper_module(setup, "whisper_tiny", "real", net=net).model.encoder
    yield _Case("Whisper tiny, tail of 1 s", encoder, whisper_states, _whisper_padded, [3.0, 5.0, 8.0, 12.0])


@torch.no_grad()
def _check(case: _Case, batch: Batch) -> str:
    """Compares the states of each utterance with those of transformers for it alone."""
    encoder = case.encoder.eval()
    out = encoder(batch.waveform_BT, batch.lengths_B)
    ours, theirs = [], []
    for row, length in enumerate(batch.lengths_B.tolist()):
        own_BT = batch.waveform_BT[row : row + 1, :length].clone()
        theirs.append(case.alone(encoder, own_BT, torch.tensor([length])))
        ours.append(out.h_BFD[row, : len(theirs[-1])])
    return closeness("output", torch.cat(ours), torch.cat(theirs), limit=2e-3) + " from theirs of one utterance"


def p1(options: Options) -> list[Row]:
    """Encoders on unequal lengths: a step without the update, inference, and memory for the backward pass.

    Models with a group norm normalize the padding as well in transformers, so the states of its padded batches are
    others. Ours are compared with transformers' states of each utterance by itself.
    """
    rows = []
    for case in _cases(options):
        durations = [seconds / 4 for seconds in case.durations] if options.quick else case.durations
        batch, encoder = make_batch(durations, labels=1, vocabulary=4, device="cpu"), case.encoder
        what = f"{case.name}, {' + '.join(f'{seconds:g}' for seconds in durations)} s"
        check, peer = _check(case, batch), "transformers, padded"
        trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]

        def ours(encoder=encoder, batch=batch) -> Tensor:
            return encoder(batch.waveform_BT, batch.lengths_B).h_BFD

        def theirs(case=case, batch=batch) -> Tensor:
            return case.padded(case.encoder, batch)

        def gradients(side: Callable[[], Tensor], trained=trained) -> Callable[[], object]:
            return lambda: torch.autograd.grad(side().sum(), trained, allow_unused=True)

        with torch.inference_mode():
            rows.append(timed(options, "P1", f"{what}, inference", peer, ours, theirs, check=check))
        encoder.train()
        sides = (gradients(ours), gradients(theirs))
        rows.append(timed(options, "P1", f"{what}, forward and backward", peer, *sides, check=check))
        our_mb, their_mb = saved_mb(ours), saved_mb(theirs)
        memory = {"ours": our_mb, "theirs": their_mb, "unit": "MB", "ratio": their_mb / our_mb, "spread": None}
        rows.append(Row(id="P1", what=f"{what}, saved tensors", peer=peer, check=check, **memory))
    return rows
