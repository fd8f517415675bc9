"""`resolve` gives typed configs, folds ``freeze``, and finds every mistake of a value."""

import dataclasses
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from ssl_asr.config.nodes import register_schemas, write_decoder
from ssl_asr.config.options import build_option, load_class, plain, plain_option
from ssl_asr.config.resolve import resolve_command
from ssl_asr.config.schemas import SCHEMAS, TrainConfig
from ssl_asr.console import Notice
from ssl_asr.errors import ConfigError, UserError, UserErrors
from tests.config.options import CONF, GROUPS, OPTIONS, compose_train, overrides_of, resolved


def policy(*overrides):
    return type(resolved(*overrides).freeze_policy).__name__


def resolved_command(name, *overrides):
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return resolve_command(name, compose(name, overrides=list(overrides)))


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_resolves_and_rebuilds_from_plain_data(group, option, tmp_path):
    config = resolved(*overrides_of(group, option, tmp_path))
    assert isinstance(config, TrainConfig)
    nodes = plain(config)
    assert yaml.safe_load(yaml.safe_dump(nodes)) == nodes
    assert build_option(nodes["backbone"], "backbone") == config.backbone
    assert build_option(nodes["freeze_policy"], "freeze_policy") == config.freeze_policy
    assert plain_option(config.optimizers.rest) == nodes["optimizers"]["rest"]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_no_option_is_a_yaml_boolean(group, option):
    assert option.lower() not in ("on", "off", "yes", "no", "true", "false", "null")


def _option_files():
    for path in sorted(CONF.rglob("*.yaml")):
        node = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        for each in [node, *(value for value in node.values() if isinstance(value, dict))]:
            if "_target_" in each and "defaults" not in each:
                yield pytest.param(each, id=f"{path.parent.name}/{path.stem}")


@pytest.mark.parametrize("node", _option_files())
def test_an_option_file_lists_every_setting(node):
    """So that ``--cfg job`` shows everything that runs."""
    kind = load_class(node["_target_"], "option")
    assert {field.name for field in dataclasses.fields(kind)} == node.keys() - {"_target_"}


@pytest.mark.parametrize("group", ["freeze_policy", "logger", "head", "experiment", "callbacks", "sweep", "debug"])
def test_groups_that_can_be_empty_have_none(group):
    assert "none" in GROUPS[group]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "FreezeFeatureEncoder"),
        (["backbone=whisper_medium"], "TrainAll"),
        (["backbone=whisper_medium", "freeze=false"], "TrainAll"),
        (["freeze=false"], "TrainAll"),
        (["freeze=true"], "FreezeEncoder"),
        (["backbone=whisper_medium", "freeze=true"], "FreezeEncoder"),
        (["freeze_policy=encoder"], "FreezeEncoder"),
        (["freeze_policy=none"], "TrainAll"),
        (["freeze_policy=feature_encoder"], "FreezeFeatureEncoder"),
        (["freeze=true", "freeze_policy=feature_encoder"], "FreezeFeatureEncoder"),
        (["freeze=true", "freeze_policy=auto"], "FreezeEncoder"),
        (["freeze=false", "freeze_policy=encoder"], "TrainAll"),
    ],
)
def test_freeze_folds_into_one_policy(overrides, expected):
    assert policy(*overrides) == expected


def test_a_policy_that_freeze_false_overrides_is_named(recwarn):
    for overrides in (["freeze=false"], ["freeze=false", "freeze_policy=none"], ["freeze=true", "freeze_policy=lora"]):
        policy(*overrides)
    assert [one for one in recwarn if one.category is Notice] == []
    with pytest.warns(Notice, match="freeze=false trains every weight, so freeze_policy=LoRA has no effect"):
        policy("freeze=false", "freeze_policy=lora")


def test_freeze_false_and_policy_none_are_the_same_node():
    assert plain(resolved("freeze=false"))["freeze_policy"] == plain(resolved("freeze_policy=none"))["freeze_policy"]


def test_a_backbone_sets_its_task_and_the_command_line_overrides_it():
    whisper = resolved("backbone=whisper_medium")
    parts = [type(part).__name__ for part in (whisper.task, whisper.head, whisper.tokenizer, whisper.decoder)]
    assert parts == ["Seq2Seq", "NoHead", "WhisperTokens", "WhisperGreedy"]
    ctc = resolved("backbone=whisper_tiny_en", "task=ctc", "head=dnn")
    assert [type(part).__name__ for part in (ctc.task, ctc.head, ctc.tokenizer)] == ["Ctc", "DnnHead", "Characters"]
    assert ctc.optimizers.rest.lr == 2e-3


def test_zeros_are_kept():
    config = resolved("seed=0", "head.dropout=0", "data.num_workers=0")
    assert (config.seed, config.head.dropout, config.data.num_workers) == (0, 0, 0)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("a/test.jsonl", ["test"]),
        ("[a/test.jsonl,b/test.jsonl]", ["a_test", "b_test"]),
        ("{x: a.jsonl, y: b.jsonl}", ["x", "y"]),
        ("null", []),
        ("{}", []),
    ],
)
@pytest.mark.parametrize("data", ["manifest", "an4", "librispeech_mini"])
def test_test_manifests_are_the_given_ones_and_get_names(data, value, names):
    assert list(resolved(f"data={data}", f"data.test={value}").data.test) == names


def test_evaluate_names_its_manifests_and_keeps_plain_types():
    config = resolved_command("evaluate", "manifest=a/b.jsonl", "output_dir=o", "model=m")
    assert config.manifest == {"test": "a/b.jsonl"}
    assert Path(config.output_dir) == Path("o")
    assert plain(config)["decoder"] is None


@pytest.mark.parametrize("name", SCHEMAS)
def test_plain_data_has_every_key_of_a_command(name):
    needed = {
        "train": ["data.train=t.jsonl", "run_dir=r"],
        "evaluate": ["output_dir=o", "model=m", "manifest=m.jsonl"],
        "transcribe": ["model=m", "input=[a.wav]"],
        "align": ["model=m", "manifest=m.jsonl", "output=o.ctm"],
        "extract": ["model=m", "input=[a.wav]", "output_dir=o"],
        "export": ["model=m", "to=transformers", "output_dir=o"],
        "import": ["source=a.pt", "output_dir=o"],
        "prepare": ["input=[a]", "output_dir=o"],
        "doctor": [],
        "plan": ["data.train=t.jsonl"],
        "serve": ["model=m"],
        "compare": ["first=a", "second=b"],
        "report": ["runs=[a]"],
        "lm": ["input=[a.txt]", "output=o.arpa"],
        "tune_decoding": ["model=m", "manifest=m.jsonl", "output=o.yaml"],
        "check": ["manifest=m.jsonl"],
        "corpus": ["output_dir=o"],
        "dashboard": [],
        "demo": [],
    }[name]
    config = resolved_command(name, *needed)
    assert plain(config).keys() == {field.name for field in dataclasses.fields(SCHEMAS[name])}


def test_fields_of_base_classes_are_checked():
    node = {"_target_": "ssl_asr.decoding.ctc.CtcBeam", "beam_size": 4, "lm_unit": "syllable", "hotwords": "one"}
    with pytest.raises(UserErrors) as caught:
        build_option(node, "decoder")
    found = {error.where: str(error) for error in caught.value.errors}
    assert "is 'syllable', expected 'word' or 'label'" in found["decoder.lm_unit"]
    assert "decoder.hotwords" in found
    assert "is missing" in found["decoder.lm_weight"]
    assert "is missing" in found["decoder.n_best"]
    assert "decoder.beam_size" not in found


def test_a_beam_holds_the_n_best_list():
    resolved("decoder=ctc_beam", "decoder.beam_size=3", "decoder.n_best=3")
    with pytest.raises(ConfigError, match=r"decoder\.n_best: is 4, and the beam has 3"):
        resolved("decoder=ctc_beam", "decoder.beam_size=3", "decoder.n_best=4")


def test_a_decoder_file_takes_the_place_of_the_decoder(tmp_path):
    option = resolved("decoder=ctc_beam", "decoder.beam_size=7").decoder
    write_decoder(tmp_path / "decoder.yaml", option)
    given = ["model=m", "input=[a.wav]", f"decoder_file={tmp_path}/decoder.yaml"]
    assert resolved_command("transcribe", *given).decoder == option
    for option in ("head/linear", "logger/csv"):
        with pytest.raises(ConfigError, match="decoder: .* does not fit here, expected a DecoderOption"):
            resolved_command("transcribe", "model=m", "input=[a.wav]", f"decoder_file={CONF}/{option}.yaml")
    with pytest.raises(ConfigError, match="decoder_file: is given together with decoder"):
        resolved_command("transcribe", *given, "decoder=ctc_greedy")
    (tmp_path / "decoder.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="decoder_file"):
        resolved_command("transcribe", *given)


def test_tuning_takes_a_ctc_beam_only():
    given = ["model=m", "manifest=m.jsonl", "output=o.yaml"]
    assert type(resolved_command("tune_decoding", *given).decoder).__name__ == "CtcBeam"
    with pytest.raises(UserError, match="decoder: CtcGreedy does not fit here, expected a CtcBeam"):
        resolved_command("tune_decoding", *given, "decoder=ctc_greedy")


def test_an_option_of_another_group_is_refused():
    config = compose_train("data.train=t.jsonl", "run_dir=r")
    config.head = {"_target_": "ssl_asr.training.loggers.CsvLog"}
    with pytest.raises(UserError, match="head: CsvLog does not fit here, expected a Head"):
        resolve_command("train", config)


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (["augment=spec_augment", "freeze=true"], "augment: has no effect on a frozen encoder"),
        (
            ["backbone.layerdrop=0.1", "freeze=true"],
            "backbone.layerdrop: is 0.1, and has no effect on a frozen encoder",
        ),
        (["backbone=whisper_tiny_en", "backbone.layerdrop=0.1", "freeze=true"], "backbone.layerdrop: is 0.1"),
        (["backbone.hidden_dropout=0.1", "freeze=true"], "backbone.hidden_dropout: is 0.1, and has no effect"),
        (["freeze_policy=decoder"], "freeze_policy: FreezeDecoder does not go with task=ctc"),
        (["backbone=whisper_tiny_en", "states=weighted_sum"], "states: Whisper's decoder reads the encoder's last"),
        (["backbone=whisper_tiny_en", "states.stride=2"], "states: Whisper's decoder reads the encoder's last"),
        (["state_cache=disk"], "state_cache: keeps the states of a frozen encoder"),
        (["state_cache=disk", "freeze=true", "data.speed_factors=[0.9]"], "data.speed_factors: is [0.9]"),
        (["state_cache=disk", "freeze=true", "data.tempo_factors=[0.9]"], "data.tempo_factors: is [0.9]"),
        (["task=joint", "task.ctc_weight=0"], "task.ctc_weight: is 0"),
        (["task=joint", "task.ctc_weight_end=0.5"], "task.ctc_weight_end: is 0.5, and task.ctc_weight_updates is None"),
        (["backbone=whisper_tiny_en", "task.ctc_weight=0.1", "freeze=true"], "task.ctc_weight: is 0.1"),
        (["head=pretrained", "states.stride=2"], "head: reads the last states unchanged"),
        (["trainer.average_best=2"], "trainer.average_best: needs a validation"),
        (["callbacks=early_stopping"], "callbacks.early_stopping.monitor: is val/wer, and there is no dev"),
        (["callbacks=lr_monitor", "logger=none"], "callbacks.lr_monitor: logs learning rates"),
        (["trainer.check_val_every_n_epoch=null"], "trainer.check_val_every_n_epoch: is null"),
    ],
)
def test_values_that_do_not_go_together_are_refused(overrides, error):
    with pytest.raises(UserError) as caught:
        resolved(*overrides)
    assert error in str(caught.value)


def test_dropouts_of_a_frozen_whisper_encoder_are_allowed_for_its_decoder():
    assert resolved("backbone=whisper_tiny_en", "backbone.dropout=0.1", "freeze=true").backbone.dropout == 0.1


@pytest.mark.parametrize("target", ["os.system", "torch.load", "torch.hub.load", "torch.nn.Linear"])
def test_classes_of_other_packages_are_not_loaded(target):
    with pytest.raises(ConfigError, match=r"is not in ssl_asr\..*extensions=\["):
        load_class(target, "head")


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("ssl_asr.nowhere.X", "there is no such module"),
        ("ssl_asr.models.heads.Nothing", "no class 'Nothing'"),
        ("ssl_asr.models.heads.LinearHed", "Did you mean 'LinearHead'"),
        ("ssl_asr.models.heads.Tensor", "no class 'Tensor'"),
        ("ssl_asr.models.heads.torch", "no class 'torch'"),
    ],
)
def test_only_classes_defined_in_the_package_are_loaded(target, error):
    with pytest.raises(ConfigError) as caught:
        load_class(target, "head")
    assert error in str(caught.value)
    assert caught.value.where == "head._target_"


def test_classes_that_are_not_dataclasses_are_not_built():
    with pytest.raises(ConfigError, match="DnnHead|is not a dataclass"):
        build_option({"_target_": "ssl_asr.models.heads.FrameWise"}, "head")


def test_weights_of_a_mixture_are_taken_from_the_command_line():
    mixed = ["data.train={a: a.jsonl, b: b.jsonl}", "data.mix_weights={a: 3, b: 0.5}"]
    config = resolved_command("train", *mixed, "run_dir=r")
    assert config.data.train == {"a": "a.jsonl", "b": "b.jsonl"}
    assert config.data.mix_weights == {"a": 3.0, "b": 0.5}
