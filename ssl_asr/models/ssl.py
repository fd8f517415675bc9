"""The wav2vec 2.0 family with exact lengths and no influence of padding.

wav2vec 2.0, XLS-R, MMS, HuBERT, WavLM, data2vec and UniSpeech-SAT.

The layers and weights are transformers'. The way in is our own: the waveform is normalised over an
utterance's own samples, and the group norm of base models takes its statistics over an utterance's own
frames. transformers takes both over the padded row, which is why a base model's states change there with
the company they keep; here they do not, so the attention mask can be given to both norm styles.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ssl_asr.models.encoder import EncoderOutput, LayerGroup, no_gradient, padding_mask
from ssl_asr.models.spec_augment import SpecAugment, share
from ssl_asr.types import Samples, Seconds


@dataclass(frozen=True, kw_only=True)
class SSLBackbone:
    """A checkpoint of the wav2vec 2.0 family.

    Attributes:
        source: a local directory, a Hub id, or a name known to `ssl_asr.models.checkpoints`.
        revision: the Hub revision to pin; null for the newest.
        normalize_waveform: zero mean and unit variance an utterance; null asks the checkpoint.
        recommended_freeze: the policy taken where neither ``freeze`` nor ``freeze_policy`` is given.
        hidden_dropout, attention_dropout, activation_dropout, feat_proj_dropout: as transformers names them;
            null leaves the checkpoint's.
        layerdrop: how likely a transformer layer is left out of a training step (Fan et al., 2020); null and 0
            leave none out, whatever the checkpoint's config says.
        attention: transformers' implementation; null takes its choice for the family.
        gradient_checkpointing: compute each layer again in backward, which saves memory and costs time.
        adapter_dim: width of MMS's adapters, one at the end of each layer; null leaves the checkpoint's, which has
            them (MMS-1b-all) or not. Where it has none they are new.
        adapter_language: whose adapters are loaded, in ISO 639-3 (``eng``, ``deu``); null leaves the checkpoint's.
    """

    source: str
    revision: str | None
    normalize_waveform: bool | None
    recommended_freeze: str
    hidden_dropout: float | None = None
    attention_dropout: float | None = None
    activation_dropout: float | None = None
    feat_proj_dropout: float | None = None
    layerdrop: float | None = None
    attention: Literal["eager", "sdpa", "flash_attention_2"] | None = None
    gradient_checkpointing: bool = False
    adapter_dim: int | None = None
    adapter_language: str | None = None

    def overrides(self) -> dict[str, Any]:
        """What is to differ from the checkpoint's own config."""
        names = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout")
        wanted = {name: getattr(self, name) for name in names} | {
            "attn_implementation": self.attention,
            "adapter_attn_dim": self.adapter_dim,
        }
        return {name: value for name, value in wanted.items() if value is not None}


def normalize_waveform(waveform_BT: Tensor, lengths_B: Tensor) -> Tensor:
    """Zero mean and unit variance over each utterance's own samples; the padding stays zero."""
    mask_BT = padding_mask(lengths_B, waveform_BT.shape[1], waveform_BT.device)
    if mask_BT is None:
        mean_B = waveform_BT.mean(1, keepdim=True)
        variance_B = waveform_BT.var(1, keepdim=True, correction=0)
        return (waveform_BT - mean_B) / (variance_B + 1e-7).sqrt()
    count_B = lengths_B.to(waveform_BT.device)[:, None]
    mean_B = (waveform_BT * mask_BT).sum(1, keepdim=True) / count_B
    centred_BT = (waveform_BT - mean_B) * mask_BT
    variance_B = centred_BT.square().sum(1, keepdim=True) / count_B
    return centred_BT / (variance_B + 1e-7).sqrt()


def _masked_group_norm(norm: nn.GroupNorm, x_BDF: Tensor, lengths_B: Tensor) -> Tensor:
    """The per-channel group norm of base models, its statistics over each row's own frames."""
    mask_BF = padding_mask(lengths_B, x_BDF.shape[-1], x_BDF.device)
    if mask_BF is None:
        normed: Tensor = norm(x_BDF)
        return normed
    assert norm.num_groups == norm.num_channels, "base models normalise each channel by itself"
    x = x_BDF.float()
    mask, count = mask_BF[:, None], lengths_B.to(x.device)[:, None, None]
    mean = (x * mask).sum(-1, keepdim=True) / count
    variance = ((x - mean) * mask).square().sum(-1, keepdim=True) / count
    x = (x - mean) * (variance + norm.eps).rsqrt()
    return (x * norm.weight[:, None] + norm.bias[:, None]).to(x_BDF.dtype)


class SSLEncoder(nn.Module):
    """An encoder of the wav2vec 2.0 family behind the `SpeechEncoder` contract.

    Args:
        net: transformers' ``Wav2Vec2Model``, ``HubertModel``, ``WavLMModel``, ``Data2VecAudioModel`` or
            ``UniSpeechSatModel``.
        normalize: whether the waveform is normalised an utterance.
    """

    max_s: Seconds | None = None

    def __init__(self, *, net: Any, normalize: bool) -> None:
        super().__init__()
        self.net: Any = net
        self.normalize = normalize
        config = self.net.config
        self.dim: int = config.hidden_size
        # data2vec is a post-norm model whose config does not say so.
        self._norm_first = bool(getattr(config, "do_stable_layer_norm", False))
        self._mask_positions()
        # w2v-BERT has no convolutions over samples.
        self._geometry = list(zip(getattr(config, "conv_kernel", ()), getattr(config, "conv_stride", ()), strict=True))
        # Layers dropped at random leave ranks with unequal graphs, and masked frames are a recipe's choice,
        # not the checkpoint's: neither is switched on behind the user's back.
        config.layerdrop = 0.0
        config.apply_spec_augment = False
        # The vector that stands for a masked frame is no part of what trains until something is masked.
        if getattr(self.net, "masked_spec_embed", None) is not None:
            self.net.masked_spec_embed.requires_grad_(False)
        self.cut_to: int | None = None
        self.augment: SpecAugment | None = None
        self.masked_share: float | None = None

    def _mask_positions(self) -> None:
        """Zero the padding before each of data2vec's convolutions for positions.

        They are five in a row: what the first makes of the padding would reach an utterance's last frames
        through the second, where the utterance alone meets zeros.
        """

        def blank(_: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
            return given if self._position_mask_BF is None else (given[0] * self._position_mask_BF[:, None],)

        self._position_mask_BF: Tensor | None = None
        positions = getattr(self.net.encoder, "pos_conv_embed", None)
        for layer in getattr(positions, "layers", ()):
            layer.register_forward_pre_hook(blank)

    def mask_with(self, augment: SpecAugment) -> None:
        """Hide spans of frames and features of the transformer's input whenever in train mode."""
        self.augment = augment
        if augment.time_prob > 0:
            if getattr(self.net, "masked_spec_embed", None) is None:
                self.net.masked_spec_embed = nn.Parameter(torch.empty(self.dim).uniform_())
                # transformers makes the vector only where its own masking would be used.
                self.net.config.mask_time_prob = augment.time_prob
            self.net.masked_spec_embed.requires_grad_(True)

    def _hide(self, h_BFD: Tensor, frame_lengths_B: Tensor) -> Tensor:
        """The learnt vector over hidden frames, then zeros over hidden features."""
        assert self.augment is not None
        time_BF = self.augment.time_mask(frame_lengths_B, h_BFD.shape[1])
        feature_BD = self.augment.feature_mask(h_BFD.shape[0], h_BFD.shape[2])
        self.masked_share = share(time_BF, frame_lengths_B)
        if time_BF is not None:
            # Part of the graph in every batch, hidden frames or none: all ranks must agree on what has gradients.
            vector_D = self.net.masked_spec_embed.to(h_BFD.dtype)
            h_BFD = torch.where(time_BF.to(h_BFD.device, non_blocking=True)[..., None], vector_D, h_BFD)
        if feature_BD is not None:
            h_BFD = h_BFD.masked_fill(feature_BD.to(h_BFD.device, non_blocking=True)[:, None], 0.0)
        return h_BFD

    def frame_lengths(self, lengths_B: Tensor) -> Tensor:
        """Frames after the convolutions, ``floor((n - kernel) / stride) + 1`` for each."""
        for kernel, stride in self._geometry:
            lengths_B = (lengths_B - kernel).div(stride, rounding_mode="floor") + 1
        return lengths_B.clamp(min=0)

    @property
    def min_samples(self) -> Samples:
        """The shortest input that gives a frame (400 samples, 25 ms, for the released models)."""
        samples = 1
        for kernel, stride in reversed(self._geometry):
            samples = (samples - 1) * stride + kernel
        return samples

    @property
    def n_layers(self) -> int:
        """Transformer layers of the checkpoint, also once it is cut."""
        layers: int = self.net.config.num_hidden_layers
        return layers

    def cut(self, layers: int) -> None:
        """Keep so many layers; a final norm belongs to the whole encoder's last and goes with it."""
        if layers < self.n_layers:
            self.cut_to = layers
            self.net.encoder.layers = self.net.encoder.layers[:layers]
            if self._norm_first:
                self.net.encoder.layer_norm = nn.Identity()

    def forward(self, waveform_BT: Tensor, lengths_B: Tensor, layers: bool = False) -> EncoderOutput:
        """Encode ``waveform_BT`` (float32, 16 kHz) of ``lengths_B`` samples (int64, CPU)."""
        h_BFD, frame_lengths_B = self._front(waveform_BT, lengths_B)
        if self.training and self.augment is not None:
            h_BFD = self._hide(h_BFD, frame_lengths_B)
        mask_BF = padding_mask(frame_lengths_B, h_BFD.shape[1], h_BFD.device)
        self._position_mask_BF = mask_BF
        drops = self.training and self.net.config.layerdrop > 0
        # transformers zeroes the padding in place, which a tensor that is needed again must not suffer.
        with self._watch(layers or drops) as seen:
            states = self.net.encoder(h_BFD if mask_BF is None else h_BFD.clone(), attention_mask=mask_BF)
        last_BFD = states.last_hidden_state
        if drops:
            # What was left out gets gradients of zero: all ranks agree on what has any.
            left_out = [layer for i, layer in enumerate(self.net.encoder.layers) if i not in seen]
            last_BFD = last_BFD + no_gradient(parameter for layer in left_out for parameter in layer.parameters())
        kept = (*_unbroken(seen, len(self.net.encoder.layers))[:-1], last_BFD) if layers else None
        return EncoderOutput(last_BFD, frame_lengths_B, frame_lengths_B, kept)

    def drop_layers(self, probability: float) -> None:
        """Leave out each layer with this probability in training steps, but WavLM's first, which gives positions."""
        self.net.config.layerdrop = probability

    def _front(self, waveform_BT: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """What the transformer is given, ``h_BFD``, and how many frames of it are speech."""
        if self.normalize:
            waveform_BT = normalize_waveform(waveform_BT, lengths_B)
        x_BFD = self._convolve(waveform_BT, lengths_B).transpose(1, 2)
        projected = self.net.feature_projection(x_BFD)
        h_BFD = projected[0] if isinstance(projected, tuple) else projected
        return h_BFD, self.frame_lengths(lengths_B)

    @contextmanager
    def _watch(self, wanted: bool) -> Iterator[dict[int, Tensor]]:
        """The input of the transformer (-1) and the output of each layer that runs, as they pass."""
        seen: dict[int, Tensor] = {}

        def keeps(index: int) -> Callable[..., None]:
            def keep(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
                seen[index] = output[0] if isinstance(output, tuple) else output

            return keep

        hooks = []
        if wanted:
            # Dropout is the last thing before the first layer, in every family.
            passed = {-1: self.net.encoder.dropout, **dict(enumerate(self.net.encoder.layers))}
            hooks = [module.register_forward_hook(keeps(index)) for index, module in passed.items()]
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()

    def _convolve(self, waveform_BT: Tensor, lengths_B: Tensor) -> Tensor:
        x_BDF = waveform_BT[:, None]
        for layer, (kernel, stride) in zip(self.net.feature_extractor.conv_layers, self._geometry, strict=True):
            lengths_B = (lengths_B - kernel).div(stride, rounding_mode="floor") + 1
            if isinstance(getattr(layer, "layer_norm", None), nn.GroupNorm):
                x_BDF = layer.activation(_masked_group_norm(layer.layer_norm, layer.conv(x_BDF), lengths_B))
            else:
                x_BDF = layer(x_BDF)
        return x_BDF

    def layer_groups(self) -> Sequence[LayerGroup]:
        """``feature_encoder``, ``projection``, ``layers.0`` … and, where the model ends with a norm, ``final_norm``."""
        encoder = self.net.encoder
        final_first = self._norm_first
        below = (self.net.feature_projection, encoder.pos_conv_embed)
        groups = [
            LayerGroup("feature_encoder", (self.net.feature_extractor,)),
            LayerGroup("projection", below if final_first else (*below, encoder.layer_norm), self._mask_vector()),
            *(LayerGroup(f"layers.{i}", (layer,)) for i, layer in enumerate(encoder.layers)),
        ]
        whole = self.cut_to is None
        return [*groups, LayerGroup("final_norm", (encoder.layer_norm,))] if final_first and whole else groups

    def _mask_vector(self) -> tuple[nn.Parameter, ...]:
        return (self.net.masked_spec_embed,) if self.augment is not None and self.augment.time_prob > 0 else ()

    def description(self) -> dict[str, Any]:
        """Plain data for `ssl_asr.models.loading.rebuild`."""
        return {
            "family": "ssl",
            "config": self.net.config.to_dict(),
            "normalize": self.normalize,
            "cut_to": self.cut_to,
        }


def _unbroken(seen: dict[int, Tensor], layers: int) -> list[Tensor]:
    """States before the first layer and after each; a layer that was left out leaves them as they were."""
    states = [seen[-1]]
    for index in range(layers):
        states.append(seen.get(index, states[-1]))
    return states


def new_ssl_net(config: dict[str, Any]) -> nn.Module:
    """Transformers' model of that configuration, with random weights."""
    from transformers import AutoConfig, AutoModel

    settings = dict(config)
    net: nn.Module = AutoModel.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
    return net.to(torch.float32)
