"""One training step, or one transcribed batch: ours and transformers', with random weights of the true shapes."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
import transformers
from torch import nn
from transformers.generation.utils import GenerationMixin

from ssl_asr.data.tokenizer import CharTokenizer, WhisperTokenizer
from ssl_asr.decoding.beam import beam_search
from ssl_asr.decoding.ctc import CtcGreedy
from ssl_asr.decoding.greedy import greedy_decode
from ssl_asr.decoding.seq2seq import WhisperGreedy
from ssl_asr.decoding.step_model import Constraints, Suppression
from ssl_asr.models.compiling import compile_layers
from ssl_asr.models.decoding_state import DecodingState
from ssl_asr.models.encoder import EncoderOutput
from ssl_asr.models.freezing import FreezeEncoder, FreezeFeatureEncoder, TrainAll
from ssl_asr.models.heads import LinearHead
from ssl_asr.models.precision import cast_weights
from ssl_asr.models.ssl import SSLEncoder
from ssl_asr.models.states import LastLayer
from ssl_asr.models.step_graph import StepGraphs
from ssl_asr.models.whisper import WhisperEncoder, WhisperSeq2Seq
from ssl_asr.training.ctc import CTCModule
from ssl_asr.training.module import ASRModule
from ssl_asr.training.seq2seq import Seq2SeqModule
from ssl_asr.types import SAMPLE_RATE, Batch, Seconds, Utterance
from tests.gpu.encoder import (
    check_attention,
    check_kernels,
    check_states,
    check_w2v_bert,
    wav2vec2_states,
    whisper_states,
)
from tests.toys import save_checkpoint

Step = Callable[[], object]

START, END = 257, 256
CTC_VOCABULARY = 32


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Where the rows run, whether with tiny shapes, and whether in bf16 autocast."""

    device: str
    tiny: bool
    bf16: bool = True

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.bf16)

    def create(self, make: Callable[[], nn.Module]) -> nn.Module:
        """A module, with its random weights drawn on the device."""
        with torch.device(self.device):
            return make()


def make_batch(durations: Sequence[Seconds], *, labels: int, vocabulary: int, device: str) -> Batch:
    """Noise, zero after the end of each utterance, with random labels."""
    draw = torch.Generator().manual_seed(1)
    lengths_B = torch.tensor([int(duration * SAMPLE_RATE) for duration in durations])
    waveform_BT = 0.1 * torch.randn(len(durations), int(lengths_B.max()), generator=draw)
    for row, length in enumerate(lengths_B.tolist()):
        waveform_BT[row, length:] = 0.0
    batch = Batch(
        waveform_BT=waveform_BT,
        lengths_B=lengths_B,
        tokens_BU=torch.randint(3, vocabulary, (len(durations), labels), generator=draw),
        token_lengths_B=torch.full((len(durations),), labels),
        utterances=[Utterance(id=str(i), audio_filepath="", duration=d) for i, d in enumerate(durations)],
    )
    return batch.to(device)


def training_step(setup: Setup, module: nn.Module, loss: Callable[[], torch.Tensor]) -> Step:
    """Forward, backward, clipping and update."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)

    def step() -> None:
        with setup.autocast():
            value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def train_ours(setup: Setup, module: ASRModule, batch: Batch, *, compiled: bool = False) -> Step:
    """A step of one of our modules."""
    module = module.to(setup.device).train()
    if compiled:
        compile_layers(module, "eager" if setup.tiny else "inductor")

    def loss() -> torch.Tensor:
        sums = module.loss(batch)
        return sums.total / sums.count

    return training_step(setup, module, loss)


# SSL encoders with CTC.

_BASE = {"layerdrop": 0.0, "apply_spec_augment": False}
_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "do_stable_layer_norm": True,
    "feat_extract_norm": "layer",
    "conv_bias": True,
}
_TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": [16] * 7,
}
_SSL = {
    "wav2vec2_base": (transformers.Wav2Vec2Config, {}),
    "wav2vec2_large": (transformers.Wav2Vec2Config, _LARGE),
    "wavlm_base": (transformers.WavLMConfig, {}),
    "wavlm_large": (transformers.WavLMConfig, _LARGE),
}


def ssl_config(name: str, *, tiny: bool) -> transformers.PretrainedConfig:
    """The shape of a pretrained SSL encoder, or a tiny one with the same kinds of layers."""
    kind, own = _SSL[name]
    settings = {**_BASE, **own, **(_TINY if tiny else {})}
    return kind(
        **settings, vocab_size=CTC_VOCABULARY, pad_token_id=0, ctc_zero_infinity=True, ctc_loss_reduction="mean"
    )


def ctc_batch(setup: Setup, durations: Sequence[Seconds]) -> Batch:
    """Eleven labels per second, at most 150."""
    labels = min(150, int(sum(durations) / len(durations) * 14 * 0.8))
    return make_batch(durations, labels=labels, vocabulary=CTC_VOCABULARY, device=setup.device)


def ssl_module(net: nn.Module, *, frozen: bool) -> CTCModule:
    """Our `CTCModule` with a linear head on an encoder of transformers."""
    encoder = SSLEncoder(net=net, normalize=True)
    states = LastLayer(stride=1).build(encoder)
    return CTCModule(
        encoder=encoder,
        states=states,
        head=LinearHead(dropout=0.1).build(dim=states.dim, vocab_size=CTC_VOCABULARY),
        decoder=CtcGreedy(),
        tokenizer=CharTokenizer(characters=list(" 'abcdefghijklmnopqrstuvwxyz"), normalizer="lower"),
        policy=FreezeEncoder() if frozen else FreezeFeatureEncoder(),
        optim=None,
        normalizers={},
    )


def ssl_ours(setup: Setup, durations: Sequence[Seconds], *, name: str, frozen=False, compiled=False) -> Step:
    """A step of our module."""
    config = ssl_config(name, tiny=setup.tiny)
    kind = transformers.WavLMModel if name.startswith("wavlm") else transformers.Wav2Vec2Model
    module = ssl_module(setup.create(lambda: kind(config)), frozen=frozen)
    batch = ctc_batch(setup, durations)
    check_attention(setup.device, torch.bfloat16)
    if name.startswith("wavlm"):
        check_kernels(setup.device)
    check_states(module.encoder.to(setup.device), batch, wav2vec2_states)
    check_w2v_bert(batch)
    return train_ours(setup, module, batch, compiled=compiled)


def ssl_net_hf(setup: Setup, name: str, *, frozen: bool) -> nn.Module:
    """transformers' ``ForCTC`` model, with its fastest attention."""
    config = ssl_config(name, tiny=setup.tiny)
    if name.startswith("wavlm"):
        model = setup.create(lambda: transformers.WavLMForCTC(config))
    else:
        model = setup.create(lambda: transformers.Wav2Vec2ForCTC._from_config(config, attn_implementation="sdpa"))
    model.freeze_feature_encoder()
    if frozen:
        model.freeze_base_model()
    return model.float().train()


def ssl_hf(setup: Setup, durations: Sequence[Seconds], *, name: str, frozen=False) -> Step:
    """A step of transformers' model."""
    model, batch = ssl_net_hf(setup, name, frozen=frozen), ctc_batch(setup, durations)
    samples_T = torch.arange(batch.waveform_BT.shape[1])
    mask_BT = (samples_T[None] < batch.lengths_B[:, None]).long().to(setup.device)
    # Models with a group norm are used without an attention mask, as their model cards say.
    inputs = {"input_values": batch.waveform_BT, "labels": batch.tokens_BU}
    if model.config.feat_extract_norm == "layer":
        inputs["attention_mask"] = mask_BT
    return training_step(setup, model, lambda: model(**inputs).loss)


# Whisper.

_WHISPER = {
    "tiny": (32, 2, 2, 80),
    "whisper_tiny": (384, 4, 6, 80),
    "whisper_small": (768, 12, 12, 80),
    "whisper_large_v3": (1280, 32, 20, 128),
}


def whisper_config(name: str, *, tiny: bool) -> transformers.WhisperConfig:
    """The shape of a Whisper model, or a tiny one."""
    width, layers, heads, bands = _WHISPER["tiny" if tiny else name]
    return transformers.WhisperConfig(
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        num_mel_bins=bands,
        vocab_size=2000 if tiny else 51866,
        max_target_positions=448,
        decoder_start_token_id=START,
        eos_token_id=END,
        pad_token_id=END,
        bos_token_id=END,
    )


def whisper_batch(setup: Setup, durations: Sequence[Seconds], *, labels: int = 44) -> Batch:
    return make_batch(durations, labels=labels, vocabulary=250, device=setup.device)


def whisper_module(
    setup: Setup, name: str, window: str, *, net: nn.Module | None = None, frozen=False
) -> Seq2SeqModule:
    """Our module, with the tokenizer of a toy checkpoint.

    Args:
        net: A ``WhisperModel`` of transformers. None for random weights.
        frozen: Whether the encoder is frozen.
    """
    folder = Path(tempfile.mkdtemp())
    save_checkpoint("whisper", folder)
    net = net or setup.create(lambda: transformers.WhisperModel(whisper_config(name, tiny=setup.tiny)))
    encoder = WhisperEncoder(net=net.encoder, window=window, tail_s=1.0, train_tail_s=None)
    return Seq2SeqModule(
        model=WhisperSeq2Seq(encoder=encoder, net=net.decoder, generation={}),
        decoder=WhisperGreedy(suppress=True, max_tokens_per_s=None),
        label_smoothing=0.0,
        tokenizer=WhisperTokenizer.from_folder(folder, language=None, task="transcribe", normalizer="none"),
        policy=FreezeEncoder() if frozen else TrainAll(),
        optim=None,
        normalizers={},
    ).to(setup.device)


def whisper_ours(setup: Setup, durations: Sequence[Seconds], *, name: str, window: str = "real") -> Step:
    """Our `Seq2SeqModule`, at real frames or at 30 s."""
    module, batch = whisper_module(setup, name, window), whisper_batch(setup, durations)
    check_states(module.model.encoder, batch, whisper_states)
    return train_ours(setup, module, batch)


def whisper_net_hf(setup: Setup, name: str) -> nn.Module:
    """transformers' model, with its fastest attention."""
    config = whisper_config(name, tiny=setup.tiny)
    kind = transformers.WhisperForConditionalGeneration
    return setup.create(lambda: kind._from_config(config, attn_implementation="sdpa"))


def mel_30_s(setup: Setup, model: nn.Module, utterances: int, dtype: torch.dtype) -> torch.Tensor:
    """Random log-mel features of 30-s windows."""
    return torch.randn(utterances, model.config.num_mel_bins, 3000, device=setup.device, dtype=dtype)


def whisper_hf(setup: Setup, durations: Sequence[Seconds], *, name: str) -> Step:
    """transformers' model at 30 s. Its features are computed beforehand."""
    model, batch = whisper_net_hf(setup, name).float().train(), whisper_batch(setup, durations)
    model.config.use_cache = False
    mel_BMF = mel_30_s(setup, model, len(durations), torch.float32)
    labels_BU = torch.cat([batch.tokens_BU[:, :1].expand(-1, 4), batch.tokens_BU], 1)
    return training_step(setup, model, lambda: model(input_features=mel_BMF, labels=labels_BU).loss)


def transcribe_ours(
    setup: Setup,
    durations: Sequence[Seconds],
    *,
    name: str,
    window: str,
    bf16: bool,
    beams: int = 1,
    graphs: bool = True,
) -> Step:
    """Encoder, log-mel and search, 44 tokens per utterance: in bf16 autocast, or with weights in bf16.

    With weights in bf16, the logits of steps of fixed shapes are compared with those of steps that grow first. Without
    ``graphs``, steps grow.
    """
    batch, tokens = whisper_batch(setup, durations, labels=1), 5 if setup.tiny else 44
    module = whisper_module(setup, name, window).eval()
    if bf16:
        cast_weights(module, torch.bfloat16)
        check_steps(module.model, batch, beams)
    # The end of the text is never chosen, so that every utterance has all its tokens.
    suppression = Suppression(always=(END,))
    constraints = Constraints(end_id=END, suppression=suppression, limits=[tokens] * len(durations))

    def search(out: EncoderOutput) -> object:
        prompts = [[START]] * len(durations)
        if beams == 1:
            return greedy_decode(module.model, out.h_BFD, out.context_lengths_B, prompts, constraints=constraints)
        own = {"beam_size": beams, "length_penalty": 1.0, "n_best": 1}
        return beam_search(module.model, out.h_BFD, out.context_lengths_B, prompts, constraints=constraints, **own)

    def step() -> None:
        with (
            torch.inference_mode(),
            nullcontext() if bf16 else setup.autocast(),
            nullcontext() if graphs else growing(),
        ):
            search(module.model.encoder(batch.waveform_BT, batch.lengths_B))

    return step


@contextmanager
def growing() -> Iterator[None]:
    """Decoding steps grow with the text: no CUDA graphs."""
    with patch.object(StepGraphs, "device_types", frozenset()):
        yield


@torch.inference_mode()
def check_steps(model: WhisperSeq2Seq, batch: Batch, beams: int) -> None:
    """Compare the logits of steps of fixed shapes, replayed on a GPU, with those of steps that grow.

    Raises:
        AssertionError: They differ by more than the rounding of bf16.
    """
    out = model.encoder(batch.waveform_BT[:4], batch.lengths_B[:4])
    rows = len(out.h_BFD) * beams
    fixed, grown = (model.begin(out.h_BFD, out.context_lengths_B, 80) for _ in range(2))
    draw = torch.Generator().manual_seed(2)
    prompt_BU = torch.full((len(out.h_BFD), 3), START, device=out.h_BFD.device)
    for state in (fixed, grown):
        model.step(prompt_BU, state)
        state.spread(beams)
    for _ in range(70):
        tokens_N1 = torch.randint(250, (rows, 1), generator=draw).to(prompt_BU.device)
        with growing():
            expected_NV = model.step(tokens_N1, grown).float()
        found_NV = _fixed_step(model, tokens_N1, fixed).float()
        error = (found_NV - expected_NV).abs().max() / expected_NV.abs().max()
        assert error < 0.05, f"logits after {grown.filled} tokens differ by {float(error):.3f} of the largest"
        own_BK = torch.randint(beams, (len(out.h_BFD), beams), generator=draw)
        parents_N = (torch.arange(len(own_BK))[:, None] * beams + own_BK).flatten().to(prompt_BU.device)
        for state in (fixed, grown):
            state.select(parents_N)
    if prompt_BU.device.type == "cuda":
        current = model.decoder._graphs._current
        assert current is not None
        assert current.replay is not None, "steps are not replayed"


def _fixed_step(model: WhisperSeq2Seq, tokens_N1: torch.Tensor, state: DecodingState) -> torch.Tensor:
    """A step of fixed shapes: on a GPU as searches run it, elsewhere without a graph."""
    if tokens_N1.device.type == "cuda":
        return model.step(tokens_N1, state)
    fixed = state.fixed
    if fixed is None or fixed.width == state.filled:
        fixed = state.fix()
    fixed.tokens_N1.copy_(tokens_N1)
    logits_NV = model.fixed_step(state)
    state.filled += 1
    return logits_NV


def transcribe_hf(setup: Setup, durations: Sequence[Seconds], *, name: str, beams: int = 1) -> Step:
    """transformers' ``generate``, weights in bf16, 30-s windows, 44 tokens per utterance."""
    tokens = 5 if setup.tiny else 44
    model = whisper_net_hf(setup, name).to(torch.bfloat16).eval()
    ends = {"decoder_start_token_id": START, "eos_token_id": END, "pad_token_id": END}
    model.generation_config = transformers.GenerationConfig(max_length=448, **ends)
    mel_BMF = mel_30_s(setup, model, len(durations), torch.bfloat16)
    options = {"min_new_tokens": tokens, "max_new_tokens": tokens, "do_sample": False, "num_beams": beams}

    def step() -> None:
        with torch.inference_mode():
            states = model.model.encoder(mel_BMF)
            start_BU = torch.full((len(durations), 1), START, device=setup.device)
            # Whisper's own `generate` adds long-form logic around this method.
            GenerationMixin.generate(model, encoder_outputs=states, decoder_input_ids=start_BU, **options)

    return step
