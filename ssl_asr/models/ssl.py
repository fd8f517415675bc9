"""The wav2vec 2.0 family: wav2vec 2.0, XLS-R, MMS, HuBERT, WavLM, data2vec and UniSpeech-SAT.

The weights come from transformers, the forward passes are our own: the input stages (`ssl_asr.models.ssl_stem`) and
the layers (`ssl_asr.models.ssl_layers`). The states of an utterance do not depend on the other utterances in the batch,
padding is not computed in the layers, and attention needs no mask.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ssl_asr.errors import CheckpointError, ConfigError
from ssl_asr.models.checkpoints import language_adapter, read_json
from ssl_asr.models.encoder import (
    EncoderOutput,
    LayerGroup,
    SpeechEncoder,
    class_path,
    frozen_conflicts,
    run_layers,
)
from ssl_asr.models.layers import by_method, with_methods
from ssl_asr.models.loading import ctc_model, load_pretrained, new_net, non_null, read_weights
from ssl_asr.models.ragged import Frames, frames_of, leave_out_of_graphs
from ssl_asr.models.spec_augment import SpecAugment, masked_share
from ssl_asr.models.ssl_layers import layer_norm_first, layer_norm_last, positions, without_padding
from ssl_asr.models.ssl_stem import conv_length, conv_stem, normalize_waveform
from ssl_asr.models.transformer import run_layer
from ssl_asr.types import Dropout, ModelName, PositiveInt, RecommendedFreeze, Samples, on_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.feature_extraction_utils import FeatureExtractionMixin

    from ssl_asr.config.schemas import TrainConfig


class SSLEncoder(SpeechEncoder):
    """An encoder of the wav2vec 2.0 family.

    Args:
        net: ``Wav2Vec2Model``, ``HubertModel``, ``WavLMModel``, ``Data2VecAudioModel`` or ``UniSpeechSatModel`` of
            transformers.
        normalize: bool, normalize the waveform of each utterance.
    """

    def __init__(self, *, net: nn.Module, normalize: bool) -> None:
        super().__init__()
        self.net = net
        self.normalize = normalize
        config: Any = net.config
        self.dim: int = config.hidden_size
        # data2vec applies the norm after each sublayer, and its config does not have this key.
        self._norm_first = bool(getattr(config, "do_stable_layer_norm", False))
        # w2v-BERT has no convolutions over samples.
        self._geometry = list(zip(getattr(config, "conv_kernel", ()), getattr(config, "conv_stride", ()), strict=True))
        # The recipe decides about LayerDrop and masking. The settings of the checkpoint do not apply.
        config.layerdrop = 0.0
        config.apply_spec_augment = False
        # The mask vector trains only if SpecAugment is used.
        if getattr(self.net, "masked_spec_embed", None) is not None:
            self.net.masked_spec_embed.requires_grad_(False)
        self.gradient_checkpointing = False
        self.layerdrop = 0.0
        self._layer: Callable[..., Any] = layer_norm_first if self._norm_first else layer_norm_last
        self.augment: SpecAugment | None = None

    def mask_with(self, augment: SpecAugment) -> None:
        """Masks spans of frames and features of the transformer's input in train mode. See `SpeechEncoder`."""
        self.augment = augment
        if augment.time_prob > 0:
            if getattr(self.net, "masked_spec_embed", None) is None:
                self.net.masked_spec_embed = nn.Parameter(torch.empty(self.dim).uniform_())
                # transformers creates the vector only if this probability is above zero.
                self.net.config.mask_time_prob = augment.time_prob
            self.net.masked_spec_embed.requires_grad_(True)

    def _hide(self, h_BFD: Tensor, frame_lengths_B: Tensor) -> Tensor:
        """Replaces masked frames with the learned mask vector, then masked features with zeros."""
        assert self.augment is not None
        time_BF = self.augment.time_mask(frame_lengths_B, h_BFD.shape[1])
        feature_BD = self.augment.feature_mask(h_BFD.shape[0], h_BFD.shape[2])
        self.masked_share = masked_share(time_BF, frame_lengths_B)
        if time_BF is not None:
            # Also without masked frames: all ranks must agree on which parameters have gradients.
            vector_D = self.net.masked_spec_embed.to(h_BFD.dtype)
            h_BFD = torch.where(on_device(time_BF, h_BFD.device)[..., None], vector_D, h_BFD)
        if feature_BD is not None:
            h_BFD = h_BFD.masked_fill(on_device(feature_BD, h_BFD.device)[:, None], 0.0)
        return h_BFD

    def frame_lengths(self, lengths_B: Tensor) -> Tensor:
        """Frames after the convolutions: ``floor((n - kernel) / stride) + 1`` for each convolution."""
        for kernel, stride in self._geometry:
            lengths_B = conv_length(lengths_B, kernel, stride)
        return lengths_B.clamp(min=0)

    @property
    def min_samples(self) -> Samples:
        """Shortest input that gives a frame: 400 samples (25 ms) for the published models."""
        samples = 1
        for kernel, stride in reversed(self._geometry):
            samples = (samples - 1) * stride + kernel
        return samples

    @property
    def n_layers(self) -> int:
        """See `SpeechEncoder`."""
        layers: int = self.net.config.num_hidden_layers
        return layers

    def cut(self, layers: int) -> None:
        """See `SpeechEncoder`."""
        if layers < self.n_layers:
            self.cut_to = layers
            self.net.encoder.layers = self.net.encoder.layers[:layers]
            if self._norm_first:
                self.net.encoder.layer_norm = nn.Identity()

    def forward(self, waveform_BT: Tensor, lengths_B: Tensor, layers: bool = False) -> EncoderOutput:
        """See `SpeechEncoder`."""
        h_BFD, frame_lengths_B = self._front(waveform_BT, lengths_B)
        if self.training and self.augment is not None:
            h_BFD = self._hide(h_BFD, frame_lengths_B)
        states = self._states(h_BFD, frame_lengths_B, keep=layers)
        return EncoderOutput(states[-1], frame_lengths_B, frame_lengths_B, tuple(states) if layers else None)

    def drop_layers(self, probability: float) -> None:
        """See `SpeechEncoder`. WavLM's first layer always runs: it computes the position bias of all layers."""
        self.layerdrop = probability

    def _front(self, waveform_BT: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Features before the positions, ``h_BFD``, and their number for each utterance."""
        if self.normalize:
            waveform_BT = normalize_waveform(waveform_BT, lengths_B)
        layers = self.net.feature_extractor.conv_layers
        x_BFD, frame_lengths_B = conv_stem(layers, waveform_BT, lengths_B, recompute=self._recomputes)
        projected = self.net.feature_projection(x_BFD)
        return projected[0] if isinstance(projected, tuple) else projected, frame_lengths_B

    @property
    def _recomputes(self) -> bool:
        return self.gradient_checkpointing and self.training

    def _states(self, h_BFD: Tensor, frame_lengths_B: Tensor, *, keep: bool) -> list[Tensor]:
        """Padded states before the first layer and after each layer, or only the last ones. See `run_layers`."""
        frames = frames_of(frame_lengths_B, h_BFD.shape[1], h_BFD.device)
        relative_HR: Tensor | None = None

        def run(layer: nn.Module, x: Tensor) -> Tensor:
            nonlocal relative_HR
            x, relative_HR = run_layer(self._layer, layer, x, frames, relative_HR, recompute=self._recomputes)
            return x

        x = frames.enter(self._with_positions(h_BFD, frames))
        states = run_layers(
            self.net.encoder.layers,
            x,
            run,
            layerdrop=self.layerdrop if self.training else 0.0,
            keep=keep,
            always=1 if self.net.config.model_type == "wavlm" else 0,
        )
        if self._norm_first:
            states[-1] = self.net.encoder.layer_norm(states[-1])
        return [frames.leave(state) for state in states]

    def _with_positions(self, h_BFD: Tensor, frames: Frames) -> Tensor:
        """The input of the first layer, padded."""
        encoder = self.net.encoder
        h_BFD = without_padding(h_BFD, frames.mask_BF)
        h_BFD = h_BFD + positions(encoder.pos_conv_embed, h_BFD, frames)
        if not self._norm_first:
            h_BFD = encoder.layer_norm(h_BFD)
        dropped: Tensor = encoder.dropout(h_BFD)
        return dropped

    def layer_groups(self) -> Sequence[LayerGroup]:
        """``feature_encoder``, ``projection``, ``layers.N``, and ``final_norm`` if the model ends with a norm."""
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
        """See `SpeechEncoder`."""
        return {
            "encoder": class_path(type(self)),
            "config": self.net.config.to_dict(),
            "normalize": self.normalize,
            "cut_to": self.cut_to,
        }

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Self:
        """See `SpeechEncoder`."""
        encoder = cls(net=new_net(description["config"]), normalize=description["normalize"])
        if description["cut_to"] is not None:
            encoder.cut(description["cut_to"])
        return encoder

    def separate_layers(self) -> Iterator[tuple[nn.Module, str | None]]:
        """See `ssl_asr.models.layers.Layered`."""
        yield from with_methods(self.net.encoder.layers, self._layer)
        self._layer = by_method

    def with_ctc_head(self, head: nn.Linear) -> "PreTrainedModel":
        """See `SpeechEncoder`."""
        return ctc_model(self.net, head)

    def feature_extractor(self) -> "FeatureExtractionMixin":
        """See `SpeechEncoder`. transformers computes attention masks for models with layer norm only."""
        from transformers import Wav2Vec2FeatureExtractor

        # The config of data2vec, which has layer norm, lacks this key.
        masked = getattr(self.net.config, "feat_extract_norm", "layer") == "layer"
        return Wav2Vec2FeatureExtractor(do_normalize=self.normalize, return_attention_mask=masked)

    def compile_layers(self, backend: str) -> None:
        """See `SpeechEncoder`."""
        leave_out_of_graphs()
        self._layer = torch.compile(self._layer, backend=backend, dynamic=True)


@dataclass(frozen=True, kw_only=True)
class SSLBackbone:
    """A checkpoint of the wav2vec 2.0 family.

    Attributes:
        source: str, local directory, Hub id, or a name known to `ssl_asr.models.checkpoints`.
        revision: str, Hub revision. None for the newest.
        normalize_waveform: bool, scale each utterance to zero mean and unit variance. None takes the setting of the
            checkpoint.
        recommended_freeze: str, freeze policy used when neither ``freeze`` nor ``freeze_policy`` is given.
        hidden_dropout: float in [0, 1), dropout after each sublayer. None keeps the value of the checkpoint.
        attention_dropout: float in [0, 1), dropout on attention weights. None keeps the value of the checkpoint.
        activation_dropout: float in [0, 1), dropout inside the feed-forward. None keeps the value of the checkpoint.
        feat_proj_dropout: float in [0, 1), dropout after the feature projection. None keeps the value of the
            checkpoint.
        layerdrop: float in [0, 1), probability of skipping each transformer layer in training (Fan et al., 2020). None
            and 0 skip no layer. The value of the checkpoint does not apply.
        gradient_checkpointing: bool, recompute layers in the backward pass, which saves memory and costs time.
        adapter_dim: int, width of the MMS adapters at the end of each layer. If the checkpoint has no adapters, they
            start from random weights. None keeps the adapters of the checkpoint, if it has any.
        adapter_language: str, language of the adapters to load: a code (``eng``, ``de``) or a name. None keeps the
            adapters of the checkpoint.
    """

    model_types: ClassVar[tuple[str, ...]] = ("wav2vec2", "hubert", "wavlm", "data2vec-audio", "unispeech-sat")
    tasks: ClassVar[frozenset[str]] = frozenset({"ctc", "joint"})

    source: ModelName
    revision: str | None
    normalize_waveform: bool | None
    recommended_freeze: RecommendedFreeze
    hidden_dropout: Dropout | None = None
    attention_dropout: Dropout | None = None
    activation_dropout: Dropout | None = None
    feat_proj_dropout: Dropout | None = None
    layerdrop: Dropout | None = None
    gradient_checkpointing: bool = False
    adapter_dim: PositiveInt | None = None
    adapter_language: str | None = None

    @classmethod
    def pretrained(cls, source: str, language: str | None) -> Self:
        """See `Backbone`."""
        return cls(
            source=source,
            revision=None,
            normalize_waveform=None,
            recommended_freeze="none",
            adapter_language=language,
        )

    def load_encoder(self, folder: Path) -> SSLEncoder:
        """Loads the pretrained encoder of a checkpoint folder in float32.

        Raises:
            CheckpointError: The weights cannot be loaded, or the model is of an unsupported kind.
            ConfigError: The checkpoint has no room for the adapters.
        """
        encoder = self._wrap(self._load_net(folder), folder)
        encoder.drop_layers(self.layerdrop or 0.0)
        encoder.gradient_checkpointing = self.gradient_checkpointing
        return encoder

    def _wrap(self, net: nn.Module, folder: Path) -> SSLEncoder:
        normalize = self.normalize_waveform
        if normalize is None:
            normalize = bool(read_json(folder / "preprocessor_config.json").get("do_normalize", True))
        return SSLEncoder(net=net, normalize=normalize)

    def _load_net(self, folder: Path) -> nn.Module:
        from transformers import AutoModel

        config = read_json(folder / "config.json")
        if config.get("add_adapter"):
            what = "has convolutions after its encoder that change the number of frames (add_adapter)"
            raise CheckpointError(self.source, what, "choose a checkpoint without them")
        self._check_adapters(config)
        new = ("masked_spec_embed", *(["adapter_layer"] if self.adapter_dim is not None else []))
        net: Any = load_pretrained(AutoModel, folder, new, self._overrides())
        if self.adapter_language is not None:
            self._load_adapters(net, folder, self.adapter_language)
        loaded: nn.Module = net
        return loaded

    def _overrides(self) -> dict[str, Any]:
        """Settings that replace the settings of the checkpoint's config."""
        names = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout")
        return non_null(self, names) | ({} if self.adapter_dim is None else {"adapter_attn_dim": self.adapter_dim})

    def _check_adapters(self, config: dict[str, Any]) -> None:
        """Checks that the checkpoint has the adapters that the options name, or room for them."""
        found = config.get("adapter_attn_dim")
        if self.adapter_dim is not None:
            if not (config["model_type"] == "wav2vec2" and config.get("do_stable_layer_norm")):
                what = "only wav2vec 2.0 models with layer norm first (MMS, XLS-R, large-lv60) have room for adapters"
                raise ConfigError("backbone.adapter_dim", what, "use freeze_policy=lora, which works with any model")
            if found is not None and self.adapter_dim != found:
                what = f"got {self.adapter_dim}, and the adapters of the checkpoint have {found}"
                raise ConfigError("backbone.adapter_dim", what, "set it to null")
        if self.adapter_language is not None and found is None:
            what = f"got {self.adapter_language}, and this checkpoint has no adapters for languages"
            raise ConfigError("backbone.adapter_language", what, "set it to null, or use backbone=mms_1b_all")

    def _load_adapters(self, net: nn.Module, folder: Path, language: str) -> None:
        """Loads the adapters of a language into every layer."""
        path = language_adapter(self.source, folder, language, revision=self.revision)
        weights = {key.removeprefix("wav2vec2."): value for key, value in read_weights(path).items()}
        weights = {key: value for key, value in weights.items() if not key.startswith("lm_head.")}
        expected = {key for key in net.state_dict() if "adapter_layer" in key}
        if set(weights) != expected:
            odd = sorted(expected.symmetric_difference(weights))
            what = f"has missing or unexpected weights: {', '.join(odd[:5])}"
            raise CheckpointError(str(path), what, "check that the file is complete")
        net.load_state_dict(weights, strict=False)

    def conflicts(self, run: "TrainConfig") -> Iterator[ConfigError]:
        """Dropouts that have no effect because the encoder is frozen."""
        names = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "layerdrop")
        return frozen_conflicts(self, names, run)
