"""Every key of every command and option meets values that nobody means: each is refused in one line, or is right."""

import copy
import math
import random
from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from ssl_asr.config.expected import check_value
from ssl_asr.config.found import file_errors
from ssl_asr.config.nodes import register_schemas
from ssl_asr.config.options import load_class
from ssl_asr.config.resolve import resolve_command
from ssl_asr.config.schemas import SCHEMAS, annotation_of
from ssl_asr.errors import UserError, UserErrors
from tests.config.options import CONF
from tests.fuzzing import fuzz, time_limit

NUMBERS = [0, -1, 1, 10**12, 10**400, -(10**400), 0.0, -0.5, 0.5, 1.5, 1e300, math.nan, math.inf, -math.inf]
TEXTS = ["", " ", "abc", "auto", "1", "-1", "nan", "null", "x" * 5000, "a\0b", "\ud800", "é\n"]
OTHERS = [None, True, False, [], [1], ["a"], [None], [[]], [-1, 2], [2, 3], {}, {"a": 1}, {"_target_": "os.system"}]
HOSTILE = [*NUMBERS, *TEXTS, *OTHERS]

# What may be negative: scores and weights of decoders, log-probabilities, and -1 for "no limit" and "all".
SIGNED = {
    *("lm_weight", "word_score", "label_score", "unknown_score", "hotword_score", "min_log_prob", "gain_db", "snr_db"),
    *("rescore_weight", "rescore_word_score", "lm_weights", "word_scores", "unknown_scores", "rescore_weights"),
    *("rescore_word_scores", "max_steps", "num_sanity_val_steps", "ctc_weight", "coverage_weight"),
    # Checked against the machine by `check_accelerator`.
    "devices",
    # A layer counted from the top.
    "layer",
}


def targets():
    """Classes of all options."""
    lines = [line for path in CONF.rglob("*.yaml") for line in path.read_text(encoding="utf-8").splitlines()]
    names = {line.split()[-1] for line in lines if line.strip().startswith("_target_: ssl_asr.")}
    kinds = [load_class(name, "test") for name in sorted(names)]
    return [kind for kind in kinds if is_dataclass(kind)]


def settings():
    """Each plain key of commands, and each key of options, with its type."""
    found = {}
    for name, schema in SCHEMAS.items():
        for field in fields(schema):
            if "group" not in field.metadata:
                found[f"{name}.{field.name}"] = annotation_of(field)
    for kind in targets():
        hints = get_type_hints(kind, include_extras=True)
        found |= {f"{kind.__name__}.{field.name}": hints[field.name] for field in fields(kind) if field.init}
    return found


SETTINGS = settings()


def parts(annotation):
    """The types that an annotation is made of."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return parts(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return {part for each in get_args(annotation) for part in parts(each)}
    if origin is Literal:
        return {type(value) for value in get_args(annotation)} | {Literal}
    return {origin or annotation}


def test_there_are_keys_of_all_commands_and_options():
    assert len(SETTINGS) > 250
    assert {"train.seed", "demo.epochs", "WhisperGreedy.max_tokens", "TrainerConfig.strategy"} <= SETTINGS.keys()


@pytest.mark.parametrize("key", SETTINGS)
def test_a_value_is_refused_in_one_line_or_is_right(key):
    annotation = SETTINGS[key]
    kinds = parts(annotation)
    for value in HOSTILE:
        with time_limit():
            _, errors = check_value(key, value, annotation)
        if errors:
            [error] = errors
            assert str(error).startswith(f"{key}: is ")
            assert "expected" in str(error)
            assert "\n" not in str(error)
            assert len(str(error)) < 1000
            continue
        assert type(value) in kinds or Any in kinds or (float in kinds and type(value) is int), (key, value)
        numbers = [one for one in (value if isinstance(value, list) else [value]) if type(one) in (int, float)]
        assert all(math.isfinite(one) and abs(one) < 2**32 for one in numbers), (key, value)
        assert key.partition(".")[2] in SIGNED or all(one >= 0 for one in numbers), (key, value)
        assert value not in ("a\0b", "\ud800"), (key, value)


NEEDED = {
    "train": ["data.train=t.jsonl", "run_dir=r"],
    "doctor": [],
    "plan": ["data.train=t.jsonl"],
    "evaluate": ["model=m", "manifest=m.jsonl", "output_dir=o", "decoder=ctc_beam"],
    "transcribe": ["model=m", "input=[a.wav]", "decoder=whisper_beam"],
    "align": ["model=m", "manifest=m.jsonl", "output=o.srt"],
    "extract": ["model=m", "input=[a.wav]", "output_dir=o"],
    "export": ["model=m", "to=transformers", "output_dir=o"],
    "import": ["source=a.pt", "output_dir=o"],
    "compare": ["first=a", "second=b"],
    "report": ["runs=[a]"],
    "lm": ["input=[a.txt]", "output=o.arpa"],
    "tune_decoding": ["model=m", "manifest=m.jsonl", "output=o.yaml"],
    "serve": ["model=m"],
    "dashboard": ["output=o.json"],
}


@cache
def composed(name):
    """The config of a command as plain data, with all that is missing given."""
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return OmegaConf.to_container(compose(name, overrides=NEEDED.get(name, ["output_dir=o"])))


def places(node, above=()):
    """Paths to all keys of a config."""
    for key, value in node.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from places(value, (*above, key))


def refused(name, changes):
    """Errors of a command's config with some values changed, each one line. Everything but errors for users fails."""
    config = copy.deepcopy(composed(name))
    for place, value in changes:
        node = config
        for key in place[:-1]:
            node = node[key]
            if not isinstance(node, dict):
                break
        else:
            node[place[-1]] = value
    cfg = OmegaConf.create(config)
    errors = []
    with time_limit():
        try:
            resolve_command(name, cfg)
        except UserErrors as several:
            errors += several.errors
        except UserError as error:
            errors.append(error)
        errors += file_errors(name, cfg)
    for error in errors:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000, error
    return [error.where for error in errors]


@fuzz(parts=10)
def test_several_wrong_values_are_refused_together(seed):
    rng = random.Random(seed)
    name = rng.choice(list(SCHEMAS))
    chosen = rng.sample(list(places(composed(name))), rng.choice([1, 1, 2, 3]))
    refused(name, [(place, rng.choice(HOSTILE)) for place in chosen])


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEMAS)
def test_each_value_of_each_key_alone(name):
    for place in places(composed(name)):
        for value in HOSTILE:
            refused(name, [(place, value)])


@pytest.mark.parametrize(
    ("name", "place", "value", "error"),
    [
        ("train", "data.train", None, "data.train"),
        ("train", "callbacks", 5, "callbacks"),
        ("train", "optimizers", "sgd", "optimizers"),
        ("train", "schedulers", 1.0, "schedulers"),
        ("train", "extensions", 1.5, "extensions"),
        ("train", "run_dir", "", "run_dir"),
        ("train", "run_dir", "\ud800", "run_dir"),
        ("train", "states.stride", True, "states.stride"),
        ("train", "seed", 2**32, "seed"),
        ("train", "data.num_workers", 5000, "data.num_workers"),
        ("train", "trainer.max_epochs", 10**8, "trainer.max_epochs"),
        ("align", "manifest", None, "manifest"),
        ("tune_decoding", "manifest", [], "manifest"),
        ("evaluate", "decoder_file", 3, "decoder_file"),
        ("evaluate", "decoder.lm", "x" * 5000, "decoder.lm"),
        ("transcribe", "decoder.max_tokens", -1, "decoder.max_tokens"),
        ("lm", "order", 1000, "order"),
        ("extract", "layers", [], "layers"),
    ],
)
def test_odd_values_are_refused(name, place, value, error):
    assert error in refused(name, [(tuple(place.split(".")), value)])
    assert refused(name, []) == []
