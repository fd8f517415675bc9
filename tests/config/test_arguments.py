"""The command line takes what people type: names of files as they are, and a message that says what to type instead."""

import os
import random
import re
import shlex
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.overrides_visitor import HydraOverrideVisitor
from hydra.grammar.gen.OverrideParser import OverrideParser
from omegaconf import OmegaConf

from ssl_asr.__main__ import main
from ssl_asr.config import launch
from ssl_asr.config.arguments import FLAGS, FLAGS_WITH_VALUE, asks_for_help, read_words
from ssl_asr.config.check import preflight
from ssl_asr.config.composing import parse_arguments, quicken_lists
from ssl_asr.config.literals import parsed, split
from ssl_asr.config.nodes import as_yaml, named_manifests
from ssl_asr.config.readings import SETTINGS, readings
from ssl_asr.config.readings import reading_of as reading
from ssl_asr.config.resolve import resolve_command
from ssl_asr.config.schemas import SCHEMAS
from ssl_asr.errors import ConfigError, UserError, did_you_mean
from tests.config.options import GROUPS, compose_train
from tests.fuzzing import fuzz, time_limit

MODEL = "model=openai/whisper-tiny.en"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def value_of(override):
    """What a command gets from an override, written to YAML and read again on the way."""
    whole = parsed(override)
    assert whole is not None, override
    plain = _plain(whole.value())
    cfg = OmegaConf.create({"value": plain})
    if not any(separator in override for separator in "\x85\u2028\u2029"):
        # PyYAML takes these for ends of lines.
        assert OmegaConf.create(OmegaConf.to_yaml(cfg)) == cfg
    # Hydra writes the values of a sweep again.
    assert _plain(parsed(f"key={whole.get_value_element_as_str()}").value()) == plain
    return OmegaConf.to_container(cfg, resolve=True)["value"]


def _plain(value):
    if isinstance(value, dict):
        return {_plain(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return getattr(value, "text", value)


def read(name, *words):
    """The value of each key of a command line."""
    return {each.lstrip("+").partition("=")[0]: value_of(each) for each in read_words(name, words).overrides}


def refused(name, *words):
    with pytest.raises(UserError) as caught:
        read_words(name, words)
    return str(caught.value)


def touch(*names):
    for name in names:
        Path(name).touch()


NAMES = [
    "talk.wav",
    "talk (1).wav",
    "it's.wav",
    'say "hi".wav',
    "both ' and \".wav",
    "é.wav",
    "é.wav",
    "日本 ü.wav",
    "🎉.wav",
    "\udcff.wav",
    "lr=0.1.wav",
    "epoch=1-val.ckpt",
    "a,b.wav",
    "[x].wav",
    "[x]",
    "{a: b}",
    "${x}.wav",
    "${model}.wav",
    "${oc.env:HOME}",
    "\\${x}",
    "${",
    "$HOME.wav",
    "100%.wav",
    "#1.wav",
    "a@b.wav",
    "!.wav",
    "+a.wav",
    "+a=b.wav",
    "~a.wav",
    "~",
    "a\\b.wav",
    "a\\,b.wav",
    "a\\",
    "C:\\audio\\x.wav",
    " a.wav",
    "a.wav ",
    " ",
    "two\nlines.wav",
    "tab\t.wav",
    "1.wav",
    "1",
    "1e3",
    "1_000",
    ".5",
    "null",
    "true",
    "on",
    "nan",
    "'quoted'",
    "choice(a,b)",
    "*.wav",
    "key: value",
    "a;b|c&d`e`<f>.wav",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_file_is_taken_whatever_its_name(name):
    touch(name)
    for words in (
        [f"input={name}"],
        [f"input=[{name}]"],
        [f"input=[b.wav,{name}]"],
        [name],
        ["--", name],
        ["-m", name],
    ):
        assert read("transcribe", *words)["input"][-1] == name, words
        written = read_words("transcribe", words)
        again = read_words("transcribe", [*written.flags, *written.overrides])
        assert again.overrides == written.overrides
    assert read("transcribe", name, "b.wav")["input"] == [name, "b.wav"]
    for key in ("model", "output"):
        assert read("transcribe", f"{key}={name}") == {key: name}
    assert read("train", f"data.train={name}") == {"data.train": name}
    assert read("evaluate", f"manifest={{one: {name}, two: b}}") == {"manifest": {"one": name, "two": "b"}}


@pytest.mark.parametrize(
    "name", [n for n in NAMES if n not in ("[x]", "'quoted'", "${model}.wav", "${oc.env:HOME}")], ids=ascii
)
def test_a_name_needs_no_file(name):
    assert read("transcribe", f"input={name}") == {"input": [name]}
    assert read("transcribe", "--", name) == {"input": [name]}
    if name != "null":
        assert read("transcribe", f"output={name}") == {"output": name}


def test_a_name_of_three_question_marks_is_no_missing_value():
    touch("???")
    assert read("transcribe", "input=???") == {"input": ["./???"]}


def test_a_name_that_starts_with_a_dash_goes_after_two_dashes():
    touch("-f", "--model.wav")
    assert read("transcribe", "a.wav", "--", "-f", "--model.wav", "seed=1") == {
        "input": ["a.wav", "-f", "--model.wav", "seed=1"]
    }
    assert "Write -- --model.wav at the end" in refused("transcribe", "--model.wav")
    assert read("transcribe", "-") == {"input": ["-"]}


def test_lists_need_no_quotes():
    assert read("transcribe", "input=[talk (1).wav,it's.wav]") == {"input": ["talk (1).wav", "it's.wav"]}
    assert read("transcribe", "input=[ a.wav , 'b, c.wav' ]") == {"input": ["a.wav", "b, c.wav"]}
    assert read("transcribe", "input=[]") == {"input": []}
    touch("a,b.wav", "c.wav")
    assert read("transcribe", "input=[a,b.wav,c.wav]") == {"input": ["a,b.wav", "c.wav"]}
    assert read("transcribe", "input=c.wav,d.wav") == {"input": ["c.wav", "d.wav"]}
    assert read("train", "decoder.hotwords=[größe,it's]") == {"decoder.hotwords": ["größe", "it's"]}
    assert read("train", "normalizers=lower") == {"normalizers": ["lower"]}
    assert read("train", "normalizers=lower,none") == {"normalizers": ["lower", "none"]}
    assert read("lm", "a.txt", "prune=[0,1]") == {"input": ["a.txt"], "prune": [0, 1]}


def test_home_is_expanded_after_an_equals_sign(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert read("transcribe", "input=~/a b.wav", "output=~/out/") == {
        "input": ["/home/someone/a b.wav"],
        "output": "/home/someone/out/",
    }
    assert read("transcribe", "input=[~/a.wav,~nobody-here/b.wav]")["input"][1] == "~nobody-here/b.wav"
    assert read("train", "run_name=~/x") == {"run_name": "~/x"}


def test_text_that_is_no_path_is_taken_too():
    assert read("train", "run_name=wer (best), it's 1") == {"run_name": "wer (best), it's 1"}
    assert read("train", "run_name=1e3", "resume=null") == {"run_name": "1e3", "resume": None}
    assert read("train", "run_name=null", "run_name=") == {"run_name": ""}


def test_hydras_own_meaning_stays():
    assert read("train", "resume='a b.ckpt'") == {"resume": "a b.ckpt"}
    assert read("train", "resume=r/top-epoch=1-step=10.ckpt") == {"resume": "r/top-epoch=1-step=10.ckpt"}
    assert read("train", "+data.extra=1", "seed=3") == {"data.extra": 1, "seed": 3}
    assert read_words("train", ["~logger", "run_dir=${hydra:runtime.output_dir}/x"]).overrides == [
        "~logger",
        "run_dir='${hydra:runtime.output_dir}/x'",
    ]
    assert read_words("train", ["hydra.run.dir=out/${now:%Y}"]).overrides == ["hydra.run.dir='out/${now:%Y}'"]
    assert read_words("train", ["optimizer@optimizers.rest=adam", "head.dropout=0.1"]).overrides == [
        "optimizer@optimizers.rest=adam",
        "head.dropout=0.1",
    ]


def test_sweeps_take_names_too():
    given = ["-m", "data.train=a (1).jsonl,b,é.jsonl", "seed=1,2", "head=linear,dnn"]
    swept = parsed(read_words("train", given).overrides[0])
    assert [_plain(each) for each in swept.value().list] == ["a (1).jsonl", "b", "é.jsonl"]
    assert read_words("train", given).overrides[1:] == ["seed=1,2", "head=linear,dnn"]
    assert parsed(read_words("transcribe", ["-m", "input=[a b,c],[d]"]).overrides[0]).is_sweep_override()
    assert read_words("train", ["-m", "data.train=glob(*)"]).overrides == ["data.train=glob(*)"]
    for typed, meant in ((",a (1)", ["", "a (1)"]), ("b,", ["b", ""]), (",", ["", ""])):
        swept = parsed(read_words("transcribe", ["-m", f"decoder.prompt={typed}"]).overrides[0])
        assert [_plain(each) for each in swept.value().list] == meant
    touch("x,y.jsonl")
    assert read("train", "-m", "data.train=x,y.jsonl") == {"data.train": "x,y.jsonl"}


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("train", ["data.dev=a,b"], "data.dev: no such file, or several values: a,b. Add -m to run a job for each"),
        ("evaluate", ["model=a,b"], "Add -m to run a job for each, or write 'model='\"'\"'a,b'\"'\"'' for one name."),
        ("train", ["seed=1,2"], "seed: has several values: 1,2. Add -m to run a job for each."),
        ("transcribe", ["--model", "a b"], "--model: keys are written without dashes. Write 'model=a b'."),
        ("transcribe", ["--model=x"], "Write model=x."),
        ("transcribe", ["--modle", "x"], "Write model=x."),
        ("transcribe", ["--num-workers=2"], "Write num_workers=2."),
        ("train", ["--data.train", "x"], "Write data.train=x."),
        ("train", ["--multrun"], "--multrun: is no flag. Did you mean --multirun?"),
        ("train", ["-q"], "-q: is no flag. See ssl-asr train --help."),
        ("train", ["--cfg", "jobs"], "--cfg: is followed by 'jobs', expected job or hydra or all."),
        ("train", ["--config-dir"], "--config-dir: needs a value."),
        ("transcribe", ["a.wav", "-f"], "-f: has no value. Write -f FORMAT."),
        (
            "transcribe",
            ["a.wav", "-o", "model=openai/whisper-tiny.en"],
            "-o: has no value before model=openai/whisper-tiny.en. Write -o OUTPUT model=openai/whisper-tiny.en.",
        ),
        (
            "transcribe",
            ["a.wav", "-m", "whisper_tiny"],
            "-m: runs a sweep, and takes no value. Write model=whisper_tiny.",
        ),
        ("transcribe", ["model", "=", "x"], "model: is followed by a space. Write model=x."),
        ("transcribe", ["model", "x"], "model: is followed by a space. Write model=x."),
        ("transcribe", ["input=", "a.wav"], "input: is empty. Write input=PATH, without a space after =."),
        ("transcribe", ["input=[a.wav,,b.wav]"], "input: is empty."),
        ("transcribe", [""], "input: a name is empty."),
        ("transcribe", ["a.wav", "input=b.wav"], "input: is given twice: input=… and a.wav."),
        ("transcribe", ["é=1.wav"], "é=1.wav: is neither key=value nor a file that exists."),
        ("train", ["there.jsonl"], "there.jsonl: train takes key=value. Write data.train=there.jsonl."),
        ("evaluate", ["there.jsonl"], "Write manifest=there.jsonl."),
        ("evaluate", ["gone.jsonl"], "Write manifest=gone.jsonl."),
        ("evaluate", ["run"], "run: evaluate takes key=value. Write model=run."),
        ("evaluate", ["best.ckpt"], "Write model=best.ckpt."),
        ("evaluate", ["whisper_tiny_en"], "Write model=whisper_tiny_en."),
        ("tune_decoding", ["openai/whisper-tiny.en"], "Write model=openai/whisper-tiny.en."),
        ("train", ["wav2vec2_base"], "Write backbone=wav2vec2_base."),
        ("train", ["sede"], "sede: train takes key=value. Did you mean seed=…?"),
        ("train", ["freeze"], "freeze: has no value. Write freeze=…."),
        ("train", ["a b=1"], "a b=1: is not key=value. Start with the name of a key."),
        ("train", ["a..b=1"], "a..b=1: is not key=value."),
        ("train", ["-- x"], "-- x: is no flag."),
        ("compare", ["a"], "compare: takes 2 names or more, FIRST SECOND [OTHERS …], and got 1."),
        ("compare", ["others=[c]", "a", "b", "d"], "others: is given twice: others=… and d."),
        ("evaluate", ["manifest={é: x}"], "manifest: 'é' cannot be a name."),
        ("transcribe", ["input=" + "a" * 5000], "input: has 5000 characters in one path: aaa"),
    ],
)
def test_a_message_says_what_to_type(name, words, message):
    touch("there.jsonl")
    touch("best.ckpt")
    Path("run").mkdir()
    said = refused(name, *words)
    assert message.removesuffix("….") in said
    assert len(said) < 500
    assert "\n" not in said


def test_what_a_message_says_to_type_works():
    touch("a b.jsonl")
    for words in (["a b.jsonl"], ["--data.train", "a b.jsonl"], ["data.train", "a b.jsonl"]):
        remedy = refused("train", *words).partition("Write ")[2].removesuffix(".")
        assert read("train", *shlex.split(remedy)) == {"data.train": "a b.jsonl"}
    remedy = refused("train", "data.dev=it's,b").partition("or write ")[2].partition(" for one")[0]
    assert read("train", *shlex.split(remedy)) == {"data.dev": "it's,b"}


def test_all_mistakes_are_said_at_once():
    assert len(refused("transcribe", "--bogus", "input=", "model=x", "é=1").splitlines()) == 3


def test_short_flags_stand_for_keys():
    for words in (["-f", "srt"], ["-fsrt"], ["-f=srt"], ["--format", "srt"], ["--format=srt"]):
        assert read("transcribe", "a.wav", *words) == {"input": ["a.wav"], "format": "srt"}
    assert read("transcribe", "a.wav", "b.mp3", MODEL, "-f", "srt", "-o", "out (1)/") == {
        "input": ["a.wav", "b.mp3"],
        "model": "openai/whisper-tiny.en",
        "format": "srt",
        "output": "out (1)/",
    }
    assert read("align", "-o", "a.ctm") == {"output": "a.ctm"}


def test_a_short_flag_of_another_command_names_the_key_of_this_one():
    for name, key in (("train", "run_dir"), ("evaluate", "output_dir"), ("compare", "output")):
        message = refused(name, "-o", "x")
        assert message.splitlines() == [f"-o: keys are written without dashes. Write {key}=x."]
    assert "-f: is no flag" in refused("train", "-f", "x")


def test_a_key_comes_before_a_file_of_the_same_name():
    touch("seed=1", "model=x.wav")
    words = read_words("train", ["seed=1"])
    assert words.overrides == ["seed=1"]
    assert words.notes == ["seed=1: read as the key 'seed'. For the file of this name, write ./seed=1"]
    assert read("transcribe", "./model=x.wav") == {"input": ["./model=x.wav"]}
    assert read("transcribe", "--", "model=x.wav") == {"input": ["model=x.wav"]}
    # Without a key of this name, the file is taken.
    assert read("transcribe", "seed=1") == {"input": ["seed=1"]}


def test_names_of_a_command_with_two_or_more():
    assert read("compare", "a b", "é") == {"first": "a b", "second": "é"}
    assert read("compare", "second=b", "a") == {"first": "a", "second": "b"}
    assert read("compare", "a", "b", "c", "d e") == {"first": "a", "second": "b", "others": ["c", "d e"]}
    assert read("compare", "second=b", "a", "c") == {"first": "a", "second": "b", "others": ["c"]}
    assert read("compare", "others=[c]", "a", "b") == {"first": "a", "second": "b", "others": ["c"]}
    assert read("serve", "outputs/a") == {"model": ["outputs/a"]}
    assert read("serve", "outputs/a", "b", "port=1") == {"model": ["outputs/a", "b"], "port": 1}
    assert read("serve", "model=outputs/a") == {"model": "outputs/a"}


def test_help_after_two_dashes_is_a_name():
    assert asks_for_help(["a", "--help"])
    assert not asks_for_help(["--", "--help"])


# What Hydra makes of it ----------------------------------------------------------------------------------------------


def test_flags_are_hydras():
    known = {flag for action in get_args_parser()._actions for flag in action.option_strings}
    assert known - {"--info", "-i"} == FLAGS | FLAGS_WITH_VALUE
    words = read_words("train", ["data.train=x", "--cfg", "job", "-cd", "conf", "--info", "seed=1", "-p=x", "-m"])
    arguments = parse_arguments("train", [*words.flags, *words.overrides])
    assert arguments.overrides == ["data.train=x", "seed=1"]
    assert arguments.multirun
    assert arguments.config_dir == "conf"


_NAMED = ("data.train", "data.test")


def test_settings_are_read_by_the_types_of_their_options():
    """Every setting of an option that is a path is in the table, with the reading of its annotation."""
    from ssl_asr.config.options import load_class

    root = Path(launch.__file__).parent.parent.parent / "conf"
    found = set()
    for group in GROUPS:
        for file in (root / group).rglob("*.yaml"):
            node = yaml.safe_load(file.read_text()) or {}
            target = node.get("_target_", (node.get(group) or {}).get("_target_") if isinstance(node, dict) else None)
            kind = load_class(target, group, extensions=["lightning"]) if target else None
            if kind is None or not is_dataclass(kind):
                continue
            hints = get_type_hints(kind, include_extras=True)
            for field in fields(kind):
                key = f"{group}.{field.name}"
                if "IsPath(" in str(hints[field.name]):
                    assert key in SETTINGS, key
                if key in SETTINGS:
                    found.add(key)
                    role = reading(hints[field.name]).role
                    assert role == reading(SETTINGS[key]).role, key
                    assert reading(hints[field.name]).listed or not reading(SETTINGS[key]).listed or key in _NAMED
    # Hydra's own, and those of options that are chosen several at once or are mappings.
    others = ("hydra.", "columns.", "audio_augment.")
    assert found == {key for key in SETTINGS if not key.startswith(others)}


def test_paths_of_schemas_have_roles():
    expected = {"input": "input", "output": "output", "model": "model", "manifest": "manifest", "run_dir": "output"}
    expected |= {"resume": "input", "output_dir": "output", "predictions": "input", "decoder_file": "input"}
    for name in set(SCHEMAS) - {"demo"}:
        for key, each in readings(name).items():
            if key in expected:
                assert each.role == expected[key], (name, key)


def test_odd_names_reach_the_config(tmp_path):
    """Through Hydra: composing, resolving, the shown config and the written config."""
    odd = "it's ${x} (é,\\'\n).jsonl"
    written = read_words("train", [f"data.train={odd}", f"run_dir={odd}", f"run_name={odd}", f"data.test=[{odd!s}]"])
    config = resolve_command("train", compose_train(*written.overrides))
    assert config.data.train == {"train": odd}
    assert config.run_dir == config.run_name == odd
    shown = launch.show_config("train", ["--cfg=job", *written.overrides])
    again = OmegaConf.to_container(OmegaConf.create(shown), resolve=True)
    assert again["run_dir"] == odd
    assert again["data"]["train"] == {"train": odd}
    assert OmegaConf.to_container(OmegaConf.create(as_yaml({"a": [odd, {"b": odd}]})), resolve=True) == {
        "a": [odd, {"b": odd}]
    }


def test_hydra_writes_into_a_folder_with_an_odd_name():
    written = read_words("train", ["data.train=t", "run_dir=é (1)/${x}"]).overrides
    assert launch.hydra_follows("train", written)[-1] == "hydra.run.dir='é (1)/\\${x}'"


def test_other_values_of_named_manifests_are_refused():
    with pytest.raises(ConfigError, match="expected a path, a list of paths"):
        named_manifests(5, "data.test")


# Files that are something else ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"RIFF\0\0\0\0WAVE", "is audio or another binary file"),
        (b"path\ttext\na.wav\thello\n", r"is a table with tabs that starts with 'path\ttext'"),
        (b"path,text\na.wav,hello\n", "is a text file that starts with 'path,text'"),
        (None, "is a folder"),
    ],
)
def test_a_file_that_is_no_manifest_is_named(tmp_path, content, what):
    path = tmp_path / "odd é"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    for name, key, others in (("evaluate", "manifest", [MODEL]), ("train", "data.dev", ["data.train=t"])):
        words = read_words(name, [f"{key}={path}", *others])
        with pytest.raises(UserError) as caught:
            preflight(name, words.overrides)
        assert f"{key}: '{path}' {what}, expected a manifest (.jsonl). A manifest has" in str(caught.value)
        assert '{"audio_filepath": "clip.wav"' in str(caught.value)


def test_a_manifest_may_have_a_byte_order_mark_and_any_name(tmp_path):
    path = tmp_path / "odd.txt"
    path.write_bytes(b'\xef\xbb\xbf\n {"audio_filepath": "a.wav"}\n')
    preflight("evaluate", read_words("evaluate", [f"manifest={path}", MODEL]).overrides)


def test_misspelled_models_and_checkpoints_get_one_suggestion():
    def said(name, *words):
        with pytest.raises(UserError) as caught:
            preflight(name, read_words(name, words).overrides)
        assert len(str(caught.value)) < 250
        return str(caught.value)

    assert "Did you mean model=whisper_medium?" in said("transcribe", "a.wav", "model=whisper_mediun")
    assert "Did you mean 'whisper_medium'?" in said("train", "data.train=t", "backbone=Whisper-Mediun")
    assert "Write backbone=whisper_tiny_en." in said("train", "data.train=t", "backbone=openai/whisper-tiny.en")
    assert "backbone=whisper_small backbone.source=openai/whisper-smal" in said(
        "train", "data.train=t", "backbone=openai/whisper-smal"
    )
    assert "ssl-asr train --help lists them" in said("train", "data.train=t", "backbone=zzz")
    assert "ssl-asr train --help lists them" in said("train", "data.train=t", "zzz=1")
    assert "+sed: unknown" not in said("train", "data.train=t", "+sed=1")


def test_long_lists_of_names_are_cut():
    names = [f"name_{number:02}" for number in range(40)]
    assert did_you_mean("zzz", names, "cmd") == (
        "known names: name_00, name_01, name_02, name_03, name_04, and 35 more. cmd lists them"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["transcrbe"], "ssl-asr: no command 'transcrbe'. Did you mean ssl-asr transcribe?"),
        (["zzz"], "ssl-asr: no command 'zzz'. ssl-asr --help lists the commands."),
        (["-m", "train", "a b"], "-m: comes before the command. Write ssl-asr train -m 'a b'."),
        (["a b.wav"], "a b.wav: is no command. To transcribe it, write ssl-asr transcribe 'a b.wav' model=…"),
    ],
)
def test_a_wrong_command_gets_one_line(words, message, monkeypatch, capsys):
    touch("a b.wav")
    monkeypatch.setattr(sys, "argv", ["ssl-asr", *words])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: {message}\n"


# Any words -----------------------------------------------------------------------------------------------------------

_BITS = [
    "\\",
    "$",
    "${",
    "}",
    "{",
    "'",
    '"',
    " ",
    ",",
    "=",
    "(",
    ")",
    "[",
    "]",
    ":",
    "?",
    "-",
    "--",
    "~",
    "+",
    "@",
    ".",
]
_BITS += ["a", "é", "\n", "\udcff", "null", "1e3", "-f", "-m", "--cfg", "choice(", "x.wav", "model", "sweep=x", "???"]


def _text(draw, longest=8):
    """Some bits and characters. No word of a command line has a NUL."""
    last = draw.choice([0x7F, 0x7F, 0x3000, 0xD800])
    return "".join(
        draw.choice(_BITS) if draw.random() < 0.7 else chr(draw.choice([draw.randrange(1, last), 0x10FFFF, 0x1F600]))
        for _ in range(draw.randint(0, longest))
    )


def _command_line(draw):
    name = draw.choice(sorted(SCHEMAS))
    keys = sorted(readings(name))
    words = [_text(draw) if draw.random() < 0.5 else f"{draw.choice(keys)}={_text(draw)}" for _ in range(4)]
    return name, words[: draw.randint(1, 4)]


def _outcome(name, words):
    """The overrides of a command line, and the message if it is refused."""
    with time_limit():
        try:
            return read_words(name, words).overrides, ""
        except UserError as error:
            return [], str(error)


def test_a_backslash_at_the_end_of_a_list_of_values_does_not_escape_its_bracket():
    assert read_words("tune_decoding", ["rescore_weights=1,2"]).overrides == ["rescore_weights=[1,2]"]
    [override] = read_words("tune_decoding", ["rescore_weights=x.wav,\\"]).overrides
    assert [str(one) for one in parsed(override).value()] == ["x.wav,\\"]


@fuzz
def test_any_words_are_read_or_refused(seed):
    name, words = _command_line(random.Random(seed))
    overrides, message = _outcome(name, words)
    assert "viable" not in message
    assert "Exception" not in message
    assert all(parsed(override) is not None for override in overrides)


@fuzz(parts=10)
def test_any_name_of_a_file_survives(seed):
    name = _text(random.Random(seed)).replace("/", "_")[:60]
    if name in ("", ".", "..", "???"):
        return
    try:
        Path(name).touch()
    except (OSError, UnicodeEncodeError):
        return
    try:
        assert read("transcribe", f"input={name}") == {"input": [name]}
        assert read("transcribe", "--", name) == {"input": [name]}
        # A key, or something below it, and an equals sign make an override.
        heads = {key.partition(".")[0] for key in readings("transcribe")}
        if not name.startswith("-") and ("=" not in name or re.split("[=.]", name)[0] not in heads):
            assert read("transcribe", name) == {"input": [name]}
    finally:
        os.remove(name)


@pytest.mark.parametrize(
    "text", ["[]", "[a]", "[[],[b,'c d'],{x: [1,2]}]", "choice([a,b],[1,null])", f"[{','.join(map(str, range(300)))}]"]
)
def test_the_items_of_a_list_are_looked_for_once(monkeypatch, text):
    looked_for = []
    element = OverrideParser.ListContainerContext.element
    monkeypatch.setattr(HydraOverrideVisitor, "visitListContainer", HydraOverrideVisitor.visitListContainer)
    by_hydra = OverridesParser.create().parse_override(f"key={text}").value()
    quicken_lists()
    monkeypatch.setattr(
        OverrideParser.ListContainerContext, "element", lambda self, i=None: looked_for.append(i) or element(self, i)
    )
    assert OverridesParser.create().parse_override(f"key={text}").value() == by_hydra
    assert set(looked_for) == {None}, "an item was counted from the start of its list"


def test_long_words_end_in_a_short_message():
    for word in (" " * 9000, "(," * 4000, "'" * 9000, "'a," * 3000, "\\" * 4000, "${" * 4000, "a:" * 4000):
        for name, key in (("transcribe", "input"), ("evaluate", "manifest")):
            assert len(_outcome(name, [f"{key}={word}"])[1]) < 500


def test_split():
    assert split("a,b", lambda _: False) == ["a", "b"]
    assert split("(a,[b),c", lambda _: False) == ["(a,[b)", "c"]
    assert split("{x: 'a,b', y: c},d", lambda _: False) == ["{x: 'a,b', y: c}", "d"]
    assert split("a,b,c", lambda name: name == "a,b") == ["a,b", "c"]
