"""An export from end to end: parity decides, and nothing is half-written."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from ssl_asr.config.exporting import ExportConfig
from ssl_asr.data.manifest import read_named
from ssl_asr.errors import CheckpointError, ConfigError, ManifestError
from ssl_asr.export import formats, job
from ssl_asr.export.job import export_folder
from ssl_asr.export.transformers import Transformers
from ssl_asr.export.utterances import own_manifests, read_examples
from ssl_asr.inference.model import InferenceOptions, load_model
from tests.export.toy_models import ctc_model, ctc_module
from tests.training.toy_runs import config_of, toy_overrides


class Wrong(Transformers):
    """A format whose runtime writes every second text backwards, and times no words."""

    quantizations = ("float32", "int8")

    def write(self, model, folder, *, quantization):
        super().write(model, folder, quantization="float32")

    def runtime(self, folder, model):
        inner = super().runtime(folder, model)

        class Runtime:
            def transcribe(self, waveforms, *, real_length):
                for i, text in enumerate(inner.transcribe(waveforms, real_length=real_length)):
                    yield text if i % 2 else text[::-1]

            def words(self, waveforms):
                return None

        return Runtime()


class Late(Transformers):
    """A format whose runtime times words a second late."""

    def runtime(self, folder, model):
        runtime = super().runtime(folder, model)
        timed = runtime.words

        def words(waveforms):
            for found in timed(waveforms):
                yield [replace(word, start=word.start + 1.0) for word in found]

        runtime.words = words
        return runtime


@pytest.fixture
def wrong_format(monkeypatch):
    monkeypatch.setitem(formats.FORMATS, "wrong", f"{__name__}.{Wrong.__name__}")


@pytest.fixture(scope="module")
def ctc_folder(toy_checkpoints, tmp_path_factory):
    """A toy CTC model as transformers saves it."""
    folder = tmp_path_factory.mktemp("ctc") / "saved"
    folder.mkdir()
    Transformers().write(ctc_model("wav2vec2_layer", toy_checkpoints), folder, quantization="float32")
    return folder


@pytest.fixture
def config(ctc_folder, toy_corpus, tmp_path):
    manifest = {"test": str(toy_corpus["test"])}
    return ExportConfig(model=str(ctc_folder), to="transformers", output_dir=str(tmp_path / "out"), manifest=manifest)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_export_is_written_with_its_parity(config, tmp_path):
    parity = export_folder(replace(config, max_utterances=3), None)
    [comparison] = parity.comparisons
    assert (comparison.window, comparison.utterances, comparison.differences) == (None, 3, [])
    assert names(tmp_path) == ["out"]
    saved = json.loads((tmp_path / "out" / "export.json").read_text())
    assert saved["parity"]["comparisons"][0]["same_text"] == 3
    assert saved["window"] is None
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert saved["files"].items() <= sizes.items()
    assert saved["files"]["model.safetensors"] > 0
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o044
    module = load_model(str(tmp_path / "out"), InferenceOptions())
    assert module.tokenizer.labels() == load_model(config.model, InferenceOptions()).tokenizer.labels()


@pytest.mark.parametrize(
    ("to", "package", "name"),
    [
        ("ctranslate2", "faster_whisper", "faster-whisper"),
        ("ggml", "pywhispercpp", "pywhispercpp"),
        ("ggml", "gguf", "gguf"),
        ("onnx", "onnxruntime", "onnxruntime"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(config, monkeypatch, to, package, name):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"to={to}: needs the package {name}, .*pip install 'ssl_asr\[{to}\]'"):
        export_folder(replace(config, to=to, model="no such model"), None)


@pytest.mark.usefixtures("wrong_format")
def test_texts_that_differ_keep_the_files_aside(config, tmp_path):
    with pytest.raises(CheckpointError) as caught:
        export_folder(replace(config, to="wrong", max_utterances=2), None)
    assert "the text of 1 of 2 utterances differs" in str(caught.value)
    assert "1 % are allowed" in str(caught.value)
    assert names(tmp_path) == ["out.differs"]
    saved = json.loads((tmp_path / "out.differs" / "export.json").read_text())
    [difference] = saved["parity"]["comparisons"][0]["differences"]
    assert difference["exported"] == difference["ssl_asr"][::-1]
    parity = export_folder(replace(config, to="wrong", max_utterances=2, max_change=1.0), None)
    assert 0 < parity.comparisons[0].change < 1
    assert names(tmp_path) == ["out", "out.differs"]


def test_words_have_the_times_of_the_runtime(config, tmp_path):
    times = export_folder(replace(config, max_utterances=3), None).times
    assert times is not None
    assert len(times.distances) > 3
    assert times.agrees()
    page = (tmp_path / "out" / "README.md").read_text()
    assert f"Of {len(times.distances)} words of 3 utterances, {times.within} start within 0.02 s" in page


def test_late_words_keep_the_files_aside(config, monkeypatch, tmp_path):
    monkeypatch.setitem(formats.FORMATS, "late", f"{__name__}.{Late.__name__}")
    with pytest.raises(CheckpointError, match="words start at other times: 0 of"):
        export_folder(replace(config, to="late", max_utterances=3), None)
    assert names(tmp_path) == ["out.differs"]


@pytest.mark.usefixtures("wrong_format")
def test_quantized_weights_may_change_more(config):
    with pytest.raises(CheckpointError, match=r"5 % are allowed.*Use quantization=float32"):
        export_folder(replace(config, to="wrong", max_utterances=2, quantization="int8"), None)


def test_an_error_leaves_nothing(config, monkeypatch, tmp_path):
    def fails(*arguments, **options):
        raise RuntimeError("disk")

    monkeypatch.setattr(job, "check_parity", fails)
    with pytest.raises(RuntimeError, match="disk"):
        export_folder(config, None)
    assert names(tmp_path) == []


def test_only_an_earlier_export_is_replaced(config, tmp_path):
    assert not list(config.conflicts())
    out = tmp_path / "out"
    out.mkdir()
    assert not list(config.conflicts()), "an empty folder may be used"
    (out / "thesis.txt").touch()
    [error] = replace(config, overwrite=True).conflicts()
    assert "holds other files, which would be lost" in str(error)
    (out / "export.json").touch()
    [error] = config.conflicts()
    assert "overwrite=true" in str(error)
    again = replace(config, overwrite=True, max_utterances=1)
    assert not list(again.conflicts())
    export_folder(again, None)
    assert names(tmp_path) == ["out"]
    assert "thesis.txt" not in names(out)


def test_a_link_stays_a_link(config, tmp_path):
    (tmp_path / "large_disk").mkdir()
    (tmp_path / "out").symlink_to("large_disk")
    for given in (config, replace(config, overwrite=True)):
        assert not list(given.conflicts())
        export_folder(replace(given, max_utterances=1), None)
        assert names(tmp_path) == ["large_disk", "out"]
        assert "export.json" in names(tmp_path / "large_disk")


@pytest.mark.parametrize("given", [".", "..", "../here"])
def test_the_current_folder_is_not_replaced(config, tmp_path, monkeypatch, given):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    conflicts = [str(error) for error in replace(config, output_dir=given).conflicts()]
    assert conflicts == [f"output_dir: is {given}, the current folder or above it. Name a new folder in it."]


def test_other_files_where_a_failed_export_is_kept_are_not_lost(config, tmp_path):
    (tmp_path / "out.differs").mkdir()
    (tmp_path / "out.differs" / "thesis.txt").touch()
    [error] = config.conflicts()
    assert "out.differs holds other files, which would be lost" in str(error)


def test_an_error_of_a_library_on_a_full_disk_names_the_disk(config, monkeypatch, tmp_path):
    def write(self, model, folder, *, quantization):
        raise RuntimeError("I/O error")

    monkeypatch.setattr(Transformers, "write", write)
    with pytest.raises(RuntimeError):
        export_folder(config, None)
    monkeypatch.setattr("ssl_asr.export.staging.shutil.disk_usage", lambda _: SimpleNamespace(free=4096))
    with pytest.raises(OSError, match="No space left on device.*out"):
        export_folder(config, None)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"to": "tensorrt"}, "to: no format 'tensorrt'"),
        ({"quantization": "int3"}, "quantization: is int3, and to=transformers has float32, float16, bfloat16"),
        ({"manifest": {}}, "manifest: is missing. Give utterances to compare"),
    ],
)
def test_what_cannot_be_exported_is_refused(given, message, config, tmp_path):
    with pytest.raises(ConfigError, match=message):
        export_folder(replace(config, **given), None)
    assert names(tmp_path) == []


def test_the_utterances_are_those_of_the_run(toy_checkpoints, toy_corpus, tmp_path):
    module = ctc_module("wav2vec2_layer", toy_checkpoints)
    module.run_config = config_of(*toy_overrides(toy_checkpoints["wav2vec2_layer"], toy_corpus))
    assert [manifest.path for manifest in own_manifests(module).values()] == [toy_corpus["test"]]
    module.run_config["data"]["test"] = {"test": str(tmp_path / "gone.jsonl")}
    assert [manifest.path for manifest in own_manifests(module).values()] == [toy_corpus["dev"]]
    module.run_config["data"]["dev"] = None
    with pytest.raises(ConfigError, match=r"gone\.jsonl and its audio no longer exist"):
        own_manifests(module)


def test_utterances_are_spread_and_the_others_counted(toy_checkpoints, toy_corpus, tmp_path):
    module = ctc_module("wav2vec2_layer", toy_checkpoints)
    examples, skips = read_examples(
        module, read_named({"train": str(toy_corpus["train"])}, root=None), most=5, root=None
    )
    assert [example.utterance.id for example in examples] == ["train1", "train3", "train5", "train7", "train9"]
    assert not skips
    rows = [json.loads(line) for line in toy_corpus["test"].read_text().splitlines()]
    for row in rows:
        row["audio_filepath"] = str(toy_corpus["test"].parent / row["audio_filepath"])
    rows[0]["duration"] = 40.0
    rows[1]["audio_filepath"] = str(tmp_path / "gone.wav")
    manifest = tmp_path / "some.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    examples, skips = read_examples(module, read_named({"test": str(manifest)}, root=None), most=10, root=None)
    assert len(examples) == 3
    assert {skip.id: skip.reason for skip in skips} == {"test0": "too_long", "test1": "missing_file"}
    manifest.write_text(json.dumps(rows[1]))
    with pytest.raises(ManifestError, match="no utterance can be compared"):
        read_examples(module, read_named({"test": str(manifest)}, root=None), most=10, root=None)
