"""Contract 8, and what ``freeze`` means."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from ssl_asr.config import launch
from ssl_asr.config.options import check_node
from ssl_asr.config.resolve import config_folder, register_schemas, resolve, resolve_plain
from ssl_asr.errors import ConfigError, UserError

CONF = config_folder()
GROUPS = {
    folder.name: sorted(p.stem for p in folder.glob("*.yaml")) for folder in sorted(CONF.iterdir()) if folder.is_dir()
}
SIDES = {"optimizer": "optimizer@optimizers.{}", "scheduler": "scheduler@schedulers.{}"}
NEEDED = ["data.train=t.jsonl", "run_dir=r"]


def compose_train(*overrides):
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def resolved(*overrides):
    return resolve(compose_train(*NEEDED, *overrides))


def policy(*overrides):
    return resolved(*overrides)["freeze_policy"]["_target_"].rpartition(".")[2]


OPTIONS = [(group, option) for group, options in GROUPS.items() for option in options]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_resolves(group, option, tmp_path):
    overrides = [f"{group}={option}"]
    if group in SIDES:
        overrides = [SIDES[group].format(side) + f"={option}" for side in ("encoder", "rest")] + ["data.dev=d.jsonl"]
    if group == "experiment":
        overrides.append("data.dev=d.jsonl")
    if group in ("augment", "state_cache"):
        overrides.append(f"freeze={str(option == 'cached').lower()}")
    if option in ("seq2seq", "whisper", "whisper_greedy", "whisper_beam") or (group, option) in (
        ("head", "none"),
        ("freeze_policy", "decoder"),
    ):
        overrides = ["backbone=whisper_tiny_en", *overrides]
    if option.startswith("attention_"):
        overrides = ["task=joint", *overrides]
    if option == "ctc_lexicon":
        (tmp_path / "words.txt").write_text("a\n", encoding="utf-8")
        overrides.append(f"decoder.lexicon={tmp_path}/words.txt")
    config = resolved(*overrides)
    assert check_node(config["freeze_policy"], "freeze_policy") == []


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_no_option_is_a_yaml_boolean(group, option):
    assert option.lower() not in ("on", "off", "yes", "no", "true", "false", "null")


@pytest.mark.parametrize("group", ["freeze_policy", "logger", "head", "experiment"])
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


def test_freeze_false_and_no_policy_are_the_same_node():
    assert resolved("freeze=false")["freeze_policy"] == resolved("freeze_policy=none")["freeze_policy"]


def test_a_backbone_brings_its_task_and_the_command_line_wins():
    whisper = resolved("backbone=whisper_medium")
    assert [whisper[k]["_target_"].rpartition(".")[2] for k in ("task", "head", "tokenizer", "decoder")] == [
        "Seq2Seq",
        "NoHead",
        "WhisperTokens",
        "WhisperGreedy",
    ]
    ctc = resolved("backbone=whisper_tiny_en", "task=ctc", "head=dnn")
    assert [ctc[k]["_target_"].rpartition(".")[2] for k in ("task", "head", "tokenizer")] == [
        "Ctc",
        "DnnHead",
        "Characters",
    ]
    assert ctc["optimizers"]["rest"]["lr"] == 2e-3


def test_numbers_that_look_false_stay():
    config = resolved("seed=0", "head.dropout=0", "data.num_workers=0")
    assert (config["seed"], config["head"]["dropout"], config["data"]["num_workers"]) == (0, 0, 0)


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
def test_test_manifests_are_those_given_and_get_names(data, value, names):
    assert list(resolved(f"data={data}", f"data.test={value}")["data"]["test"]) == names


WRONG = {
    "backbone=bogus": "whisper_tiny_en",
    "freezee=false": "freezee: unknown key (did you mean 'freeze'?)",
    "freeze=maybe": "freeze",
    "freeze=encoder": "freeze",
    "seed=abc": "seed",
    "logger=null": "logger: a group takes the name of an option, not null",
    "head.droput=0.1": "head.droput: unknown key",
    "+head.droput=0.1": "head.droput: unknown key of LinearHead (did you mean 'dropout'?)",
    "head.dropout=much": "head.dropout: is 'much' (it should be float)",
    "data.max_batch_s=-1": "data.max_batch_s: is -1 (it should be more than 0 seconds)",
    "data.downmix=left": "data.downmix: is 'left' (it should be 'mean', 'first', 'refuse')",
    "trainer.max_epochs=0": "trainer.max_epochs: is 0",
    "data.test=5": "data.test: is 5",
    "normalizers=[whisper_englsh]": "normalizers: no normaliser 'whisper_englsh' (did you mean 'whisper_english'?)",
    "task=seq2seq": "task: seq2seq needs a decoder",
    "head=none": "head: NoHead does not go with this task (head=linear or head=dnn)",
    "tokenizer=whisper": "tokenizer: WhisperTokens does not go with this task (tokenizer=char)",
    "head._target_=os.system": "head._target_: no class 'os.system'",
    "trainer.monitor=val/wre": "trainer.monitor: no metric 'val/wre' (did you mean 'val/wer'?)",
    "scheduler@schedulers.rest=newbob": "schedulers.rest.monitor: waits for a validation (give data.dev=…",
    "backbone.recommended_freeze=some": "backbone.recommended_freeze: is 'some'",
    "optimizers.rest.lr=-1": "optimizers.rest.lr: is -1",
    "optimizers.rest.layer_decay=0": "optimizers.rest.layer_decay: is 0 (it should be more than 0, at most 1)",
    "states.stride=4": "states.stride: is 4 (it should be 1, 2 or 3)",
}


@pytest.mark.parametrize("override", WRONG)
def test_a_mistake_is_named_with_its_remedy(override, capsys):
    with pytest.raises(UserError) as caught:
        launch.preflight("train", ["data.train=t.jsonl", override])
    assert WRONG[override] in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_options_that_would_do_nothing_are_refused():
    for overrides, said in (
        (["augment=spec_augment", "freeze=true"], "augment: a frozen encoder is never masked"),
        (["backbone.layerdrop=0.1", "freeze=true"], "backbone.layerdrop: a frozen encoder drops nothing"),
        (["backbone=whisper_tiny_en", "backbone.layerdrop=0.1", "freeze=true"], "backbone.layerdrop: a frozen encoder"),
        (["backbone.hidden_dropout=0.1", "freeze=true"], "backbone.hidden_dropout: a frozen encoder drops nothing"),
        (["freeze_policy=decoder"], "freeze_policy: this task has no pretrained decoder"),
        (["backbone=whisper_tiny_en", "states=weighted_sum"], "states: Whisper's decoder reads the encoder's last"),
    ):
        with pytest.raises(UserError) as caught:
            launch.preflight("train", ["data.train=t.jsonl", *overrides])
        assert said in str(caught.value)


def test_all_mistakes_at_once():
    mistakes = ["freezee=true", "backbone=bogus", "head.dropout=much", "data.max_batch_s=-1", "seed=x"]
    with pytest.raises(UserError) as caught:
        launch.preflight("train", mistakes)
    lines = str(caught.value).splitlines()
    for key in ("freezee", "backbone", "head.dropout", "data.max_batch_s", "seed"):
        assert sum(line.startswith(f"{key}:") for line in lines) == 1, str(caught.value)


def test_missing_values_are_named():
    with pytest.raises(UserError, match=r"data\.train: is missing \(give data\.train=…\)"):
        launch.preflight("train", [])


def test_every_job_of_a_sweep_is_checked_first():
    with pytest.raises(UserError, match="bogus"):
        launch.preflight("train", ["-m", "data.train=t", "backbone=wav2vec2_base,bogus", "freeze=true,false"])
    launch.preflight("train", ["-m", "data.train=t", "backbone=wav2vec2_base,wavlm_base_plus", "freeze=true,false"])
    launch.preflight("train", ["-m", "data.train=t", "backbone=whisper_medium", "freeze=true,false"])


def test_one_folder_for_several_jobs_is_refused():
    sweep = ["-m", "data.train=t", "freeze=true,false"]
    with pytest.raises(UserError, match=r"run_dir: one folder, runs/a, for 2 jobs.*hydra.sweep.dir=runs/a"):
        launch.preflight("train", [*sweep, "run_dir=runs/a"])
    launch.preflight("train", ["-m", "data.train=t", "run_dir=runs/a,runs/b"])
    launch.preflight("train", [*sweep, "hydra.sweep.dir=runs/a"])


def test_hydra_writes_where_the_results_go():
    given = ["data.train=t", "run_dir=runs/a"]
    assert launch.hydra_follows(given) == [*given, "hydra.run.dir=runs/a"]
    for untouched in (["data.train=t"], [*given, "hydra.run.dir=h"], ["-m", *given], ["--help", *given]):
        assert launch.hydra_follows(untouched) == untouched


def test_several_processes_in_a_sweep_are_refused():
    for overrides in (["trainer=ddp"], ["trainer.devices=2"]):
        with pytest.raises(ConfigError, match="in a sweep"):
            launch.refuse_ddp(resolved(*overrides))
    launch.refuse_ddp(resolved("trainer=gpu"))


@pytest.mark.parametrize("flag", ["--help", "--hydra-help", "--cfg=job"])
def test_help_is_left_to_hydra(flag):
    """Even with what is missing and wrong, so that people can look the right thing up."""
    assert launch._overrides([flag, "freezee=1"]) is None
    assert launch._overrides(["freeze=true"]) == (["freeze=true"], False)
    assert launch._overrides(["-m", "freeze=true,false"]) == (["freeze=true,false"], True)


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("evaluate", ["window=60s"], "window: is '60s'"),
        ("evaluate", ["whisper_task=sing"], "whisper_task: is 'sing'"),
        ("transcribe", ["model=x"], "input: is missing"),
        ("corpus", ["output_dir=x", "train=0"], "train: is 0"),
        ("evaluate", ["manifst=x"], "did you mean 'manifest'?"),
    ],
)
def test_the_other_commands_check_too(name, overrides, said):
    with pytest.raises(UserError) as caught:
        launch.preflight(name, overrides)
    assert said in str(caught.value)


def test_other_packages_cannot_be_called_from_a_config():
    for target in ("os.system", "torch.load", "torch.hub.load", "ssl_asr.nowhere.X", "ssl_asr.models.heads.Nothing"):
        [error] = check_node({"_target_": target}, "head")
        assert isinstance(error, ConfigError)
        assert "no class" in str(error)


def test_resolve_plain_gives_plain_data():
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = resolve_plain(compose("evaluate", overrides=["manifest=a/b.jsonl", "output_dir=o"]))
    assert config["manifest"] == {"test": "a/b.jsonl"}
    assert Path(config["output_dir"]) == Path("o")


def test_settings_that_a_class_inherits_are_checked_too():
    errors = check_node(
        {"_target_": "ssl_asr.decoding.ctc.CtcBeam", "beam_size": 4, "lm_unit": "syllable", "hotwords": "one"},
        "decoder",
    )
    said = {error.where: str(error) for error in errors}
    assert "it should be 'word', 'label'" in said["decoder.lm_unit"]
    assert "decoder.hotwords" in said
    assert "is missing" in said["decoder.lm_weight"]
    assert "is missing" in said["decoder.n_best"]
    assert "decoder.beam_size" not in said


def test_a_beam_holds_as_many_texts_as_are_asked_for():
    resolved("decoder=ctc_beam", "decoder.beam_size=3", "decoder.n_best=3")
    with pytest.raises(ConfigError, match="the beam holds 3"):
        resolved("decoder=ctc_beam", "decoder.beam_size=3", "decoder.n_best=4")
