"""Policies that train a few parameters inside layers that stay: adapters, low-rank or MMS's, and biases."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from ssl_asr.errors import ConfigError, missing_extra
from ssl_asr.models.freezing import ConstantPolicy

# Attention as most families compute it, by calling these modules; and what WavLM calls, whose attention reads the
# weights of its projections past their modules, so that an adapter there would be trained by nothing.
_TARGETS = ["q_proj", "v_proj"]
_CONFORMER_TARGETS = ["linear_q", "linear_v"]
_WAVLM_TARGETS = ["intermediate_dense", "output_dense"]
_WAVLM_PAST = {"q_proj", "k_proj", "v_proj", "out_proj"}


def _layers(names: Sequence[str]) -> set[str]:
    return {name for name in names if name.startswith(("layers.", "decoder.layers."))}


def _new(rest: Sequence[str]) -> set[str]:
    """What has no pretrained weights: states and head."""
    return {name for name in rest if not name.startswith("decoder.")}


@dataclass(frozen=True, kw_only=True)
class LoRA(ConstantPolicy):
    """Low-rank adapters beside linear layers of the transformer (Hu et al., 2021), by peft; and a new head whole.

    Attributes:
        rank: of the adapters.
        alpha: the adapters' share is ``alpha / rank``.
        dropout: of the adapters' input.
        targets: names of the linear layers within a transformer layer; null takes the queries and values of
            attention, or WavLM's feed-forward layers, since its attention would pass adapters by.
        encoder, decoder: which of Whisper's sides get adapters; other models have an encoder only.
        checkpoint: ``whole`` writes checkpoints that need nothing else; ``adapter`` writes what trains only, some
            hundredths of the size, which need the pretrained weights at hand.
    """

    rank: int
    alpha: float
    dropout: float
    targets: list[str] | None
    encoder: bool
    decoder: bool
    checkpoint: Literal["whole", "adapter"]

    @property
    def only_trained(self) -> bool:
        """Whether checkpoints leave out what never changes."""
        return self.checkpoint == "adapter"

    def trainable(self, encoder: Sequence[str], rest: Sequence[str]) -> frozenset[str]:
        """Layers that hold adapters, and what is new."""
        chosen = (_layers(encoder) if self.encoder else set()) | (_layers(rest) if self.decoder else set())
        if not chosen:
            what = "no layer is to have adapters"
            raise ConfigError("freeze_policy", what, "encoder=true, or decoder=true for Whisper's decoder")
        return frozenset(chosen | _new(rest))

    def selects(self, group: str, parameter: str) -> bool:
        """Adapters only, but everything of what is new."""
        return "lora_" in parameter or not group.startswith(("layers.", "decoder.layers."))

    def prepare(self, encoder: Any, decoder: nn.Module | None) -> None:
        """Put adapters beside the targets; they change nothing until they have trained.

        Raises:
            ConfigError: the model has no such layers, or reads their weights past the adapters.
        """
        if self.encoder:
            self._insert(encoder.net)
        if self.decoder and decoder is not None:
            self._insert(decoder)

    def _insert(self, net: Any) -> None:
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError:
            raise missing_extra("freeze_policy=lora", "peft", "lora", "freeze_policy=bitfit") from None
        family = net.config.model_type
        is_wavlm = family == "wavlm"
        defaults = {"wavlm": _WAVLM_TARGETS, "wav2vec2-bert": _CONFORMER_TARGETS}
        targets = self.targets if self.targets is not None else defaults.get(family, _TARGETS)
        past = sorted(_WAVLM_PAST & set(targets)) if is_wavlm else []
        if past:
            what = f"WavLM's attention reads the weights of {', '.join(past)} past any adapter"
            raise ConfigError("freeze_policy.targets", what, f"targets=[{','.join(_WAVLM_TARGETS)}]")
        known = {name.rpartition(".")[2] for name, module in net.named_modules() if isinstance(module, nn.Linear)}
        if unknown := sorted(set(targets) - known):
            what = f"no linear layers named {', '.join(unknown)}"
            raise ConfigError("freeze_policy.targets", what, f"known: {', '.join(sorted(known))}")
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=targets)  # type: ignore[arg-type]
        inject_adapter_in_model(config, net)


def merge_adapters(model: nn.Module) -> None:
    """Add every adapter into the layer it stands beside, and leave that layer alone in its place."""
    # A model has LoRA layers only if peft was imported to insert them, and importing peft is slow.
    if "peft" not in sys.modules:
        return
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            merged: Any = module
            merged.merge()
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], merged.get_base_layer())


@dataclass(frozen=True, kw_only=True)
class Adapters(ConstantPolicy):
    """The adapters at the end of each layer of MMS (Pratap et al., 2023), and a new head whole.

    The backbone has them (``mms_1b_all``) or is given them (``backbone.adapter_dim``).
    """

    def trainable(self, encoder: Sequence[str], rest: Sequence[str]) -> frozenset[str]:
        """The transformer's layers, and what is new."""
        return frozenset(_layers(encoder) | _new(rest))

    def selects(self, group: str, parameter: str) -> bool:
        """Adapters only, but everything of what is new."""
        return "adapter_layer" in parameter or not group.startswith("layers.")

    def prepare(self, encoder: Any, decoder: nn.Module | None) -> None:
        """The model stays as it is.

        Raises:
            ConfigError: it has no adapters.
        """
        if not any("adapter_layer" in name for name, _ in encoder.net.named_parameters()):
            what = "this model has no adapters to train"
            raise ConfigError("freeze_policy", what, "backbone=mms_1b_all, backbone.adapter_dim=16, or lora")


@dataclass(frozen=True, kw_only=True)
class BitFit(ConstantPolicy):
    """The biases of the transformer, those of its norms included (Ben Zaken et al., 2021); and a new head whole."""

    def trainable(self, encoder: Sequence[str], rest: Sequence[str]) -> frozenset[str]:
        """All but ``feature_encoder``."""
        return frozenset([*encoder, *rest]) - {"feature_encoder", "decoder.embed"}

    def selects(self, group: str, parameter: str) -> bool:
        """Biases only, but everything of what is new."""
        return parameter.endswith("bias") or group in ("states", "head", "ctc")
