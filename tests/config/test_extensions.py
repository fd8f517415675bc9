"""Options of other packages: found on every search path, built only where the user names the package."""

import sys

import pytest

from ssl_asr.config.check import preflight
from ssl_asr.config.options import Call, build_option, check_extensions, load_class, plain
from ssl_asr.config.resolve import resolve
from ssl_asr.errors import ConfigError, UserError, UserErrors
from tests.config.options import NEEDED, compose_train

PACKAGE = """
from dataclasses import dataclass
from typing import ClassVar

from lightning import Callback
from ssl_asr.types import PositiveInt


@dataclass(frozen=True, kw_only=True)
class TinyHead:
    width: PositiveInt
    tasks: ClassVar[frozenset[str]] = frozenset({"ctc"})
    copies_checkpoint: ClassVar[bool] = False

    def build(self, *, dim, vocab_size): ...


class Plain:
    def __init__(self) -> None: ...


class Shout(Callback):
    def __init__(self, every_n: int, word: str = "hey") -> None:
        self.every_n, self.word = every_n, word
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with a head and a callback, and a folder of configs for them."""
    (tmp_path / "their_package.py").write_text(PACKAGE)
    (tmp_path / "broken_package.py").write_text("import no_such_library")
    conf = tmp_path / "conf"
    for group, name, text in (
        ("head", "tiny", "_target_: their_package.TinyHead\nwidth: 8\n"),
        ("head", "broken", "_target_: broken_package.Head\n"),
        ("callbacks", "shout", "shout:\n  _target_: their_package.Shout\n  every_n: 10\n"),
    ):
        (conf / group).mkdir(parents=True, exist_ok=True)
        (conf / group / f"{name}.yaml").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield conf
    sys.modules.pop("their_package", None)


def _both_ways(conf):
    return [["--config-dir", str(conf)], [f"hydra.searchpath=[file://{conf}]"]]


def test_options_of_other_folders_are_checked_with_their_package_named(package):
    for where in _both_ways(package):
        preflight("train", [*where, "data.train=t", "head=tiny", "extensions=[their_package]"])
        preflight("train", [*where, "-m", "data.train=t", "head=tiny,linear", "extensions=[their_package]"])
        preflight("train", [*where, "data.train=t", "callbacks=shout", "extensions=[their_package]"])


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (
            ["head=tiny"],
            "head._target_: class 'their_package.TinyHead' is not in ssl_asr. If you trust the package, add ext",
        ),
        (["head=tiny", "extensions=[their_package]", "head.width=0"], "head.width: is 0, expected a whole number of 1"),
        (
            ["head=tiny", "extensions=[their_package]", "head.widht=1"],
            "head.widht: unknown key. Did you mean 'width'?",
        ),
        (["head=tiny", "extensions=[their_package]", "task=joint"], "head: TinyHead does not go with task=joint"),
        (["head=tiny", "extensions=[their_pakage]"], "extensions: package 'their_pakage' is not installed"),
        (["head=broken", "extensions=[broken_package]"], "head._target_: broken_package needs no_such_library"),
        (
            ["callbacks=shout", "extensions=[their_package]", "callbacks.shout.every_n=often"],
            "callbacks.shout.every_n: is 'often'",
        ),
        (
            ["callbacks=shout", "extensions=[their_package]", "+callbacks.shout.evry=1"],
            "callbacks.shout.evry: unknown key of Shout",
        ),
    ],
)
def test_mistakes_in_options_of_other_packages_are_found_early(package, overrides, error):
    for where in _both_ways(package):
        for multirun in ([], ["-m"]):
            with pytest.raises(UserError) as caught:
                preflight("train", [*where, *multirun, "data.train=t", *overrides])
            assert error in str(caught.value)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ConfigError, match="--config-dir: no such folder"):
        preflight("train", ["--config-dir", str(tmp_path / "nowhere"), "data.train=t"])


def test_a_callback_class_keeps_its_arguments_and_its_node(package):
    cfg = compose_train(*NEEDED, "extensions=[their_package]")
    node = {"_target_": "their_package.Shout", "every_n": 3}
    cfg.callbacks = {"mine": node}
    config = resolve(cfg)
    assert isinstance(config.callbacks["mine"], Call)
    assert config.callbacks["mine"].build().every_n == 3
    assert plain(config)["callbacks"] == {"mine": node}
    assert plain(config)["extensions"] == ["their_package"]


@pytest.mark.parametrize("target", ["ssl_asr.training.loggers.NoLog", "their_package.TinyHead", "their_package.Plain"])
def test_a_class_that_is_not_a_callback_is_refused(package, target):
    cfg = compose_train(*NEEDED, "extensions=[their_package]")
    cfg.callbacks = {"mine": {"_target_": target} | ({"width": 1} if target.endswith("TinyHead") else {})}
    with pytest.raises(ConfigError, match="callbacks.mine: is not a callback"):
        resolve(cfg)


def test_lightning_callbacks_need_lightning_named():
    cfg = compose_train(*NEEDED)
    cfg.callbacks = {"timer": {"_target_": "lightning.pytorch.callbacks.Timer", "interval": "epoch"}}
    with pytest.raises(UserError, match=r"extensions=\[lightning\]"):
        resolve(cfg)
    cfg.extensions = ["lightning"]
    assert type(resolve(cfg).callbacks["timer"].build()).__name__ == "Timer"


def test_an_option_file_of_another_package_is_built_with_its_package_only(package):
    node = {"_target_": "their_package.TinyHead", "width": 8}
    assert build_option(node, "head", extensions=["their_package"]).width == 8
    with pytest.raises(ConfigError, match="is not in ssl_asr"):
        build_option(node, "head")
    with pytest.raises(ConfigError, match="no class 'Callback'"):
        load_class("their_package.Callback", "head", extensions=["their_package"])


def test_a_checkpoint_loads_only_with_its_extensions_named(package):
    check_extensions([], [], "run/best.ckpt")
    check_extensions(["their_package"], ["their_package"], "run/best.ckpt")
    with pytest.raises(
        ConfigError, match=r"run/best.ckpt: uses classes of their_package.*extensions=\[their_package\]"
    ):
        check_extensions(["their_package"], [], "run/best.ckpt")
    with pytest.raises((ConfigError, UserErrors), match="package 'gone' is not installed"):
        check_extensions(["gone"], ["gone"], "run/best.ckpt")
