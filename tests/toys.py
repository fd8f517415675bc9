"""Tiny random models that have every part of the real ones."""

import json
from pathlib import Path

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

from ssl_asr.models.encoder import Backbone
from ssl_asr.models.ssl import SSLBackbone
from ssl_asr.models.w2v_bert import W2vBertBackbone
from ssl_asr.models.whisper import WhisperBackbone

SPECIALS = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|startoflm|>"]
SPECIALS += ["<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
END, START, NO_TIMESTAMPS = 256, 257, 264

_SMALL = {
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
_GROUP = {"feat_extract_norm": "group", "do_stable_layer_norm": False}
_LAYER = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}

FAMILIES = {
    "wav2vec2_group": (Wav2Vec2Config, _GROUP),
    "wav2vec2_layer": (Wav2Vec2Config, _LAYER),
    "hubert_group": (HubertConfig, _GROUP),
    "hubert_layer": (HubertConfig, _LAYER),
    "wavlm_group": (WavLMConfig, _GROUP),
    "wavlm_layer": (WavLMConfig, _LAYER),
    "unispeech_sat_layer": (UniSpeechSatConfig, _LAYER),
    "w2v_bert": (Wav2Vec2BertConfig, {"num_conv_pos_embeddings": 4, "feature_projection_input_dim": 160}),
    "data2vec": (Data2VecAudioConfig, {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 4}),
    "whisper": (WhisperConfig, {}),
}
SSL_FAMILIES = [name for name in FAMILIES if name != "whisper"]


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
    config_class, norm = FAMILIES[name]
    if name == "whisper":
        _save_whisper(folder)
        return folder
    model = transformers.AutoModel.from_config(config_class(**{**_SMALL, **norm}))
    model.save_pretrained(folder)
    do_normalize = name.endswith("layer")
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": do_normalize}))
    return folder


def toy_encoder(name: str, checkpoints: dict[str, Path], **options):
    """The encoder of a toy checkpoint, pretrained as it is but for these options of its backbone."""
    options = {"source": "", "revision": None, "recommended_freeze": "none", **options}
    if name == "whisper":
        backbone: Backbone = WhisperBackbone(**{"window": "real", "tail_s": 1.0, "train_tail_s": None, **options})
    else:
        option = W2vBertBackbone if name == "w2v_bert" else SSLBackbone
        backbone = option(**{"normalize_waveform": None, **options})
    return backbone.load_encoder(checkpoints[name])


def save_language_model(folder: Path) -> Path:
    """A tiny random GPT-2 over bytes, and "ab" and " b" beside them, saved as transformers saves them."""
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
        # As trained ones are, it is surer of some tokens than of others.
        model.transformer.wte.weight.mul_(20.0)
    model.save_pretrained(folder)
    return folder
