"""The model card: what it says comes from the run's files."""

import hashlib
import json
from dataclasses import replace

import pytest
import yaml

from ssl_asr.config.exporting import ExportConfig
from ssl_asr.export.card import Card, results_of, trained_parts, without_folders
from ssl_asr.metrics.edit import Edits
from ssl_asr.metrics.report import Score
from tests.export.toy_models import ctc_model, whisper_model
from tests.training.toy_runs import config_of, toy_overrides

VERSIONS = {"python": "3.11", "torch": "2.11.0"}
RUN = {"command": "ssl-asr train run_dir=/home/me/run", "finished": "2026-01-01", "versions": VERSIONS, "git": None}


def scores(wer):
    score = Score("lower", "words", Edits(wer, 0, 0, 100), Edits(wer, 0, 0, 200), 0.01, 0.05, 2, 50)
    return {"scores": {"lower": score.as_dict()}, "skipped": []}


@pytest.fixture
def saved():
    sides = {"ssl_asr": {"wer": 0.02}, "exported": {"wer": 0.03}}
    comparison = {"window": None, "same_text": 9, "utterances": 10, "change": 0.01, "wer": {"lower": sides}}
    return {
        "format": "transformers",
        "quantization": "float32",
        "task": "ctc",
        "parameters": 12_300_000,
        "bytes": 49_200_000,
        "window": None,
        "usage": "```python\nrun()\n```",
        "parity": {"max_change": 0.01, "comparisons": [comparison]},
        "run": {**RUN, "command": "ssl-asr export /home/me/run"},
    }


@pytest.fixture
def card(toy_checkpoints, toy_corpus, saved):
    model = ctc_model("wav2vec2_layer", toy_checkpoints)
    run = config_of(*toy_overrides(toy_checkpoints["wav2vec2_layer"], toy_corpus))
    run["backbone"]["source"] = "facebook/wav2vec2-base"
    model.module.run_config = run
    config = ExportConfig(model="run", to="transformers", output_dir="/tmp/my-model", license="apache-2.0")
    results = {"run": RUN, "dev": scores(9), "test": scores(3), "test_other": scores(5)}
    return Card(config=config, model=model, saved=saved, results=results)


def front_matter(text):
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_front_matter_is_the_hubs(card):
    front, _ = front_matter(card.text())
    assert front["license"] == "apache-2.0"
    assert front["base_model"] == "facebook/wav2vec2-base"
    assert front["pipeline_tag"] == "automatic-speech-recognition"
    assert front["library_name"] == "transformers"
    [index] = front["model-index"]
    assert index["name"] == "my-model"
    found = {result["dataset"]["name"]: result["metrics"][0]["value"] for result in index["results"]}
    assert found == {"test": 3.0, "test_other": 5.0}, "the dev set chose the checkpoint"


def test_the_page_has_results_data_and_how_to_run(card, toy_corpus):
    _, body = front_matter(card.text())
    assert "| test | lower | 3.00 | 1.00 to 5.00 | 1.50 | 50 |" in body
    assert "| test_other | lower | 5.00 |" in body
    digest = hashlib.sha256(toy_corpus["train"].read_bytes()).hexdigest()
    hours = sum(json.loads(line)["duration"] for line in toy_corpus["train"].read_text().splitlines()) / 3600
    assert f"| train | train.jsonl | `{digest[:16]}` | 10 | {hours:.2f} |" in body
    assert "run()" in body
    assert "|  | 9 of 10 | 1.00 | 2.00 / 3.00 |" in body
    assert "ssl-asr train run_dir=…/run" in body
    assert "torch 2.11.0" in body
    assert "The model writes only these characters: ` abc'`" in body
    assert "12.3 million parameters, 49.2 MB" in body


def test_no_path_of_this_machine_is_in_the_page(card, toy_corpus):
    assert str(toy_corpus["train"].parent) not in card.text()
    assert "/home/me" not in card.text()
    assert without_folders("a/b ~/c https://x.y/z 'k=/a/b/c' /top") == "a/b ~/c https://x.y/z 'k=…/c' /top"
    assert without_folders("run_dir='/home/my name/a b/x' '/my name/y.jsonl'") == "run_dir='…/x' '…/y.jsonl'"
    assert without_folders("path:/home/me/x file:///home/me/x ~/me/x") == "path:…/x file://…/x …/x"
    assert without_folders(r"C:\Users\me\x /a b") == "…/x /a b"


def test_manifests_that_are_gone_are_named(card):
    card.model.module.run_config["data"]["train"] = {"train": "/gone/old.jsonl"}
    assert "| train | old.jsonl | no longer there |" in card.text()


def test_what_trained_is_said(card):
    config = card.model.module.run_config
    assert trained_parts(config).startswith("freeze policy ")
    assert "encoder " in trained_parts(config)
    lora = {"_target_": "ssl_asr.models.adapters.LoRA", "rank": 8, "targets": None}
    said = trained_parts({"freeze_policy": lora, "optimizers": {"rest": {"lr": 0.001}}, "seed": 3})
    assert said == "freeze policy LoRA (rank=8); learning rates: rest 0.001; seed 3"


def test_a_pretrained_whisper_has_a_card(toy_checkpoints, saved):
    model = whisper_model(toy_checkpoints)
    window = {"window": "30s", "tail_s": 1.0, "runtime_encodes_real_lengths": True}
    saved |= {"task": "seq2seq", "window": {**window, "same_text_with_real_lengths": False}}
    saved["parity"]["own_window"] = {"lower": {"wer": 0.04}}
    config = ExportConfig(model="openai/whisper-tiny.en", to="transformers", output_dir="x/tiny")
    front, body = front_matter(Card(config=config, model=model, saved=saved, results={}).text())
    assert front["language"] == "en"
    assert front["base_model"] == "openai/whisper-tiny.en"
    assert "license" not in front
    assert "The license is not stated" in body
    assert "Nothing was trained" in body
    assert "its text differs from that of ssl_asr" in body
    assert "No test set was scored" in body
    assert "| real, ssl_asr only |  |  | 4.00 |" in body


def test_results_belong_to_the_checkpoint_that_was_scored(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for name in ("best.ckpt", "last.ckpt"):
        (folder / name).touch()
    (tmp_path / "run" / "results.json").write_text(json.dumps({"test": {}}))
    assert results_of(str(tmp_path / "run")) == {"test": {}}
    assert results_of(str(folder / "best.ckpt")) == {"test": {}}
    assert results_of(str(folder / "last.ckpt")) == {}
    assert results_of("openai/whisper-base") == {}


def test_the_name_on_the_hub_is_the_name(card):
    pushed = replace(card, config=replace(card.config, push="me/other"))
    assert "\n# other\n" in pushed.text()
