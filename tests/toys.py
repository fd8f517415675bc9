"""Tiny models with random weights and every part of the real models. `FAMILIES` is the list of toys."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Data2VecAudioConfig,
    HubertConfig,
    UniSpeechSatConfig,
    Wav2Vec2BertConfig,
    Wav2Vec2Config,
    WavLMConfig,
    WhisperConfig,
)

from ssl_asr.models.encoder import Backbone, SpeechEncoder
from ssl_asr.models.parakeet import LogMel, ParakeetBackbone
from ssl_asr.models.ssl import SSLBackbone
from ssl_asr.models.w2v_bert import FilterBanks, W2vBertBackbone
from ssl_asr.models.whisper import WhisperBackbone

SPECIALS = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>"]
SPECIALS += ["<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
END, START, NO_TIMESTAMPS = 256, 257, 264

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (8, 8, 8),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 2, 2),
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "num_feat_extract_layers": 3,
    "vocab_size": 12,
    "mask_time_length": 2,
}
GROUP = {"feat_extract_norm": "group", "do_stable_layer_norm": False}
LAYER = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}


@dataclass(frozen=True, kw_only=True)
class Toy:
    """A tiny model of the wav2vec 2.0 family. Other families override what differs.

    Attributes:
        config: Config class of transformers.
        settings: Arguments of ``config``, besides the sizes that all toys share.
        published: Parts of the names of published checkpoints that this toy replaces in tests, in lower case.
        normalize: Whether the preprocessor config asks for normalized waveforms.
        backbone: Backbone option.
        options: Required arguments of ``backbone``, besides the ones that all options have.
        dropouts: Dropout arguments of ``backbone`` that the config has.
        groups: Layer groups below the transformer layers.
        ungrouped: Parameters that belong to no layer group unless SpecAugment is used.
        tolerance: Of the front end against transformers' feature extractor.
    """

    config: type[transformers.PreTrainedConfig]
    settings: dict[str, Any] = field(default_factory=dict)
    published: tuple[str, ...] = ()
    normalize: bool = False
    backbone: type[Backbone] = SSLBackbone
    options: dict[str, Any] = field(default_factory=lambda: {"normalize_waveform": None})
    dropouts: tuple[str, ...] = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout")
    groups: tuple[str, ...] = ("feature_encoder", "projection")
    ungrouped: tuple[str, ...] = ("net.masked_spec_embed",)
    tolerance: dict[str, float] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Saves a checkpoint as transformers does."""
        model = transformers.AutoModel.from_config(self.config(**{**SMALL, **self.settings}))
        model.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": self.normalize}))

    def reference(self, folder: Path) -> torch.nn.Module:
        """transformers' encoder of a checkpoint."""
        return transformers.AutoModel.from_pretrained(folder).eval()

    def values(self, waveform: torch.Tensor) -> torch.Tensor:
        """Input of `reference` for one utterance, from transformers' feature extractor."""
        extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=self.normalize)
        return extractor(waveform.numpy(), sampling_rate=16000, return_tensors="pt").input_values

    def own_values(self, waveform: torch.Tensor) -> torch.Tensor | None:
        """The same input from the encoder's own front end. None if `values` needs no front end."""
        return None


@dataclass(frozen=True, kw_only=True)
class W2vBertToy(Toy):
    """A tiny w2v-BERT 2.0."""

    def values(self, waveform: torch.Tensor) -> torch.Tensor:
        values = transformers.SeamlessM4TFeatureExtractor()(waveform.numpy(), sampling_rate=16000, return_tensors="pt")
        # transformers masks an odd frame at the end. FilterBanks drops it.
        return values["input_features"][:, : int(values["attention_mask"].sum())]

    def own_values(self, waveform: torch.Tensor) -> torch.Tensor | None:
        return FilterBanks()(waveform[None], torch.tensor([len(waveform)]))


@dataclass(frozen=True, kw_only=True)
class WhisperToy(Toy):
    """A tiny English-only Whisper with a tokenizer and generation settings."""

    def save(self, folder: Path) -> None:
        _save_whisper(folder)

    def reference(self, folder: Path) -> torch.nn.Module:
        return transformers.WhisperModel.from_pretrained(folder).eval().encoder

    def values(self, waveform: torch.Tensor) -> torch.Tensor:
        extractor = transformers.WhisperFeatureExtractor()
        return extractor(waveform.numpy(), sampling_rate=16000, return_tensors="pt").input_features


@dataclass(frozen=True, kw_only=True)
class ParakeetToy(Toy):
    """A tiny Parakeet-CTC. Its batch norms have random statistics, as in a trained model."""

    def save(self, folder: Path) -> None:
        config = transformers.ParakeetCTCConfig(vocab_size=12, pad_token_id=11, encoder_config=self.settings)
        model = transformers.ParakeetForCTC(config)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
        model.save_pretrained(folder)
        transformers.ParakeetFeatureExtractor().save_pretrained(folder)

    def reference(self, folder: Path) -> torch.nn.Module:
        return transformers.AutoModel.from_pretrained(folder).eval().encoder

    def values(self, waveform: torch.Tensor) -> torch.Tensor:
        values = transformers.ParakeetFeatureExtractor()(waveform.numpy(), sampling_rate=16000, return_tensors="pt")
        return values["input_features"][:, : int(values["attention_mask"].sum())]

    def own_values(self, waveform: torch.Tensor) -> torch.Tensor | None:
        return LogMel(n_mels=80)(waveform[None], torch.tensor([len(waveform)])).transpose(1, 2)


FAMILIES: dict[str, Toy] = {
    "wav2vec2_group": Toy(config=Wav2Vec2Config, settings=GROUP),
    "wav2vec2_layer": Toy(
        config=Wav2Vec2Config, settings=LAYER, normalize=True, published=("wav2vec2", "xls-r", "mms")
    ),
    "hubert_group": Toy(config=HubertConfig, settings=GROUP),
    "hubert_layer": Toy(config=HubertConfig, settings=LAYER, normalize=True, published=("hubert",)),
    "wavlm_group": Toy(config=WavLMConfig, settings=GROUP),
    "wavlm_layer": Toy(config=WavLMConfig, settings=LAYER, normalize=True, published=("wavlm",)),
    "unispeech_sat_layer": Toy(config=UniSpeechSatConfig, settings=LAYER, normalize=True, published=("unispeech",)),
    "w2v_bert": W2vBertToy(
        config=Wav2Vec2BertConfig,
        settings={"num_conv_pos_embeddings": 4, "feature_projection_input_dim": 160},
        published=("w2v-bert",),
        backbone=W2vBertBackbone,
        dropouts=("hidden_dropout", "attention_dropout", "feat_proj_dropout"),
        groups=("projection",),
        tolerance={"atol": 2e-3, "rtol": 1e-3},
    ),
    "data2vec": Toy(
        config=Data2VecAudioConfig,
        settings={"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 4},
        published=("data2vec",),
    ),
    "parakeet": ParakeetToy(
        config=transformers.ParakeetCTCConfig,
        settings={
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "conv_kernel_size": 5,
            "subsampling_conv_channels": 8,
            "initializer_range": 0.2,
        },
        published=("parakeet",),
        backbone=ParakeetBackbone,
        options={},
        dropouts=("dropout", "attention_dropout", "activation_dropout"),
        ungrouped=(),
        tolerance={"atol": 1e-4, "rtol": 1e-4},
    ),
    "whisper": WhisperToy(
        config=WhisperConfig,
        published=("whisper",),
        backbone=WhisperBackbone,
        options={"window": "real", "tail_s": 1.0, "train_tail_s": None},
        dropouts=("dropout", "attention_dropout", "activation_dropout"),
        groups=("feature_encoder",),
        ungrouped=(),
    ),
}
# Whisper computes silence after the utterance, so its states have more frames than transformers' encoders.
SSL_FAMILIES = [name for name in FAMILIES if name != "whisper"]


def toy_for(source: str) -> str:
    """Name of the toy that replaces a published checkpoint."""
    return next(name for name, toy in FAMILIES.items() if any(part in source.lower() for part in toy.published))


def whisper_config() -> WhisperConfig:
    return WhisperConfig(
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_mel_bins=80,
        vocab_size=256 + len(SPECIALS) + 1501,
        decoder_start_token_id=START,
        eos_token_id=END,
        pad_token_id=END,
        bos_token_id=END,
        init_std=0.2,
    )


def _save_whisper(folder: Path) -> None:
    model = transformers.WhisperForConditionalGeneration(whisper_config())
    model.save_pretrained(folder)
    alphabet = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.save(str(folder / "tokenizer.json"))
    generation = {
        "decoder_start_token_id": START,
        "eos_token_id": END,
        "pad_token_id": END,
        "bos_token_id": END,
        "max_length": 448,
        "suppress_tokens": [3, 5, START, *range(NO_TIMESTAMPS, whisper_config().vocab_size)],
        "begin_suppress_tokens": [END, 7],
        "no_timestamps_token_id": NO_TIMESTAMPS,
        "is_multilingual": False,
        "return_timestamps": False,
    }
    (folder / "generation_config.json").write_text(json.dumps(generation))


def save_checkpoint(name: str, folder: Path) -> Path:
    torch.manual_seed(1)
    FAMILIES[name].save(folder)
    return folder


def toy_backbone(name: str, folder: Path | str, **options: Any) -> Backbone:
    """The backbone option of a toy checkpoint, with ``options`` in place of the defaults."""
    toy = FAMILIES[name]
    shared = {"source": str(folder), "revision": None, "recommended_freeze": "none"}
    return toy.backbone(**{**shared, **toy.options, **options})


def toy_encoder(name: str, checkpoints: dict[str, Path], **options: Any) -> SpeechEncoder:
    """The encoder of a toy checkpoint, with ``options`` of the backbone in place of the defaults."""
    return toy_backbone(name, checkpoints[name], **options).load_encoder(checkpoints[name])


def save_language_model(folder: Path) -> Path:
    """Saves a tiny random GPT-2 over bytes with the merged tokens "ab" and " b"."""
    torch.manual_seed(2)
    vocabulary = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {"ab": 256, "Ġb": 257, "<|endoftext|>": 258}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b"), ("Ġ", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end).save_pretrained(
        folder
    )
    config = transformers.GPT2Config(
        vocab_size=259, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=258, eos_token_id=258
    )
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        # Makes the distribution over tokens uneven, as in trained models.
        model.transformer.wte.weight.mul_(20.0)
    model.save_pretrained(folder)
    return folder
