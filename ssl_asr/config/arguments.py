"""The command line as people type it, written for Hydra.

    ssl-asr transcribe a.wav "b (1).mp3" -f srt output=out/
                       |     |           |      |
                       names, for input  flag   key=value     -> input=[a.wav,'b (1).mp3'] format=srt output=out/

Words without ``=`` are values of the keys in ``positional`` of a command's schema. Words that start with ``-`` are
flags: Hydra's, or short forms of keys in ``flags`` of the schema. All words after ``--`` are names.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ssl_asr.config.folders import option_names
from ssl_asr.config.literals import exists, literal, parsed, spell
from ssl_asr.config.readings import Reading, first_parts, readings
from ssl_asr.config.schemas import SCHEMAS
from ssl_asr.errors import ConfigError, closest, raise_all

# Long forms of Hydra's flags with a value. --info may have one.
_LONG = {
    "-c": "--cfg",
    "-p": "--package",
    "-cp": "--config-path",
    "-cn": "--config-name",
    "-cd": "--config-dir",
}
FLAGS_WITH_VALUE = frozenset({*_LONG, *_LONG.values(), "--experimental-rerun"})
FLAGS = frozenset(
    {"--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m"}
    | {"--shell-completion", "-sc"}
)
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
_CHOICES = {"--info": _INFO, "-i": _INFO, "--cfg": ("job", "hydra", "all"), "-c": ("job", "hydra", "all")}
_OVERRIDE = re.compile(r"(?P<mark>\+{0,2}|~)(?P<key>[^=\s]*)=(?P<value>.*)", re.S)
_KEY = re.compile(r"[A-Za-z_$][\w$-]*(?:[./][\w$-]+)*(?:@[\w$.-]*)?", re.A)
_MULTIRUN = re.compile(r"-m|--multirun|hydra\.mode=MULTIRUN|sweep=(?!none$).+")
# Keys that the short flags of other commands stand for here.
_ELSEWHERE = {"-o": ("output", "output_dir", "run_dir"), "-f": ("format",)}
_NO_READING = Reading()


@dataclass
class Words:
    """A command line, written for Hydra.

    Attributes:
        flags: Flags and their values.
        overrides: Overrides in Hydra's grammar.
        names: Words without a key.
        errors: Everything that cannot be written for Hydra.
        notes: What the user should know about how a word was read.
    """

    flags: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    errors: list[ConfigError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def asks_for_help(typed: Sequence[str]) -> bool:
    """Whether a command line has ``--help`` or ``-h`` among its flags."""
    flags = typed[: typed.index("--")] if "--" in typed else typed
    return bool({"--help", "-h"} & set(flags))


def read_words(name: str, typed: Sequence[str]) -> Words:
    """The command line of a command, written for Hydra. Words that are already written for Hydra are left as they are.

    Args:
        name: Name of the command.
        typed: Arguments after the name of the command.

    Raises:
        ConfigError, UserErrors: All words that cannot be read, each with what to type.
    """
    words = _Reader(name, typed).read()
    raise_all(words.errors)
    return words


class _Reader:
    """Reads the words of a command line one after the other."""

    def __init__(self, name: str, typed: Sequence[str]) -> None:
        self._name = name
        self._left = list(typed)
        self._schema = SCHEMAS[name]
        self._readings = readings(name)
        self._short: dict[str, str] = getattr(self._schema, "flags", {})
        self._positional: tuple[str, ...] = getattr(self._schema, "positional", ())
        before = typed[: typed.index("--")] if "--" in typed else typed
        self._sweeps = any(_MULTIRUN.fullmatch(word) for word in before)
        self._words = Words()

    def read(self) -> Words:
        """All words."""
        while self._left:
            word = self._left.pop(0)
            if word == "--":
                self._words.names += self._left
                break
            if word.startswith("-") and word != "-":
                self._flag(word)
            elif self._is_override(word):
                self._override(word)
            else:
                self._bare(word)
        self._name_words()
        return self._words

    def _keys(self) -> list[str]:
        return sorted({*self._readings, *first_parts(self._name)})

    def _error(self, where: str, what: str, remedy: str) -> None:
        self._words.errors.append(ConfigError(where, what, remedy))

    # Flags -------------------------------------------------------------------------------------------------------

    def _flag(self, word: str) -> None:
        flag, equals, value = word.partition("=")
        if flag not in {*FLAGS, *FLAGS_WITH_VALUE, *self._short} and flag[:2] in self._short and flag[1] != "-":
            flag, equals, value = word[:2], "=", word[2:]
        if flag in self._short:
            if not equals and self._left and self._sets_known(self._left[0]):
                written = f"{flag} {self._short[flag].upper()} {shlex.quote(self._left[0])}"
                self._error(flag, f"has no value before {self._left[0]}", f"write {written}")
                return
            self._short_flag(flag, value if equals else self._value_after())
        elif flag in ("--info", "-i"):
            after = self._left.pop(0) if not equals and self._left and self._left[0] in _INFO else "all"
            self._hydra_flag("--info", value if equals else after)
        elif flag in FLAGS and not equals:
            self._words.flags.append(word)
            if flag in ("-m", "--multirun"):
                self._check_multirun(flag)
        elif flag in FLAGS_WITH_VALUE:
            self._hydra_flag(flag, value if equals else self._value_after())
        else:
            self._unknown_flag(word)

    def _value_after(self) -> str | None:
        return self._left.pop(0) if self._left and self._left[0] != "--" else None

    def _short_flag(self, flag: str, value: str | None) -> None:
        key = self._short[flag]
        if not value:
            self._error(flag, "has no value", f"write {flag} {key.upper()}")
        else:
            self._override(f"{key}={value}")

    def _hydra_flag(self, flag: str, value: str | None) -> None:
        choices = _CHOICES.get(flag)
        if not value or (choices is not None and value not in choices):
            expected = " or ".join(choices) if choices else "a value"
            self._error(flag, f"is followed by {value!r}, expected {expected}" if value else f"needs {expected}", "")
        else:
            self._words.flags.append(f"{_LONG.get(flag, flag)}={value}")

    def _check_multirun(self, flag: str) -> None:
        """Refuse ``-m NAME``, since -m names the model in other programs."""
        if self._left and self._positional and "model" in self._readings:
            after = self._left[0]
            if not after.startswith("-") and not self._is_override(after) and not exists(after):
                self._left.pop(0)
                self._error(flag, "runs a sweep, and takes no value", f"write {shlex.quote(f'model={after}')}")

    def _unknown_flag(self, word: str) -> None:
        if exists(word):
            remedy = f"write {shlex.join(['--', word])} at the end for the file of this name"
            self._error(word, "is no flag", remedy)
            return
        flag, equals, value = word.partition("=")
        key = flag.lstrip("-").replace("-", "_")
        other = next((key for key in _ELSEWHERE.get(flag, ()) if key in self._readings), None)
        close = other or closest(key, self._keys())
        if other is None and (not flag.startswith("--") or close is None):
            flags = ["--help", "--cfg", "--multirun", "--config-dir", *self._short]
            near = closest(flag, flags) if len(flag) > 2 else None
            remedy = f"did you mean {near}?" if near else f"see ssl-asr {self._name} --help"
            self._error(flag, "is no flag", remedy)
            return
        if not equals:
            follows = self._left and not self._left[0].startswith("-") and not self._is_override(self._left[0])
            value = self._left.pop(0) if follows else "…"
        self._error(
            flag, "keys are written without dashes", f"write {shlex.quote(f'{close}={value}').replace('…', '')}"
        )

    # Overrides ---------------------------------------------------------------------------------------------------

    def _is_override(self, word: str) -> bool:
        """Whether a word sets a key. A key of the command comes before a file of the same name, other keys after it."""
        found = _OVERRIDE.fullmatch(word)
        if found is None:
            deleted = word.startswith("~") and _KEY.fullmatch(word[1:]) is not None
            return deleted and self._starts_known(word[1:]) and not exists(word)
        if _KEY.fullmatch(found["key"]) is None and not found["key"].startswith("@"):
            return False
        if found["mark"] == "" and self._starts_known(found["key"]):
            return True
        return not exists(word)

    def _starts_known(self, key: str) -> bool:
        return re.split(r"[./@]", key)[0] in first_parts(self._name)

    def _sets_known(self, word: str) -> bool:
        """Whether a word sets a key of the command."""
        found = _OVERRIDE.fullmatch(word)
        return found is not None and _KEY.fullmatch(found["key"]) is not None and self._starts_known(found["key"])

    def _override(self, word: str) -> None:
        found = _OVERRIDE.fullmatch(word)
        if found is None or found["mark"] == "~":
            if parsed(word) is None:
                self._error(word, "cannot be read", "write ~key to remove a key")
            self._words.overrides.append(word)
            return
        key, value = found["key"], found["value"]
        if exists(word):
            note = f"{word}: read as the key '{key}'. For the file of this name, write {shlex.quote(f'./{word}')}"
            self._words.notes.append(note)
        try:
            reading = self._readings.get(key, _NO_READING)
            spelled = spell(key, value, reading, sweeps=self._sweeps, known=first_parts(self._name))
        except ConfigError as error:
            self._words.errors.append(error)
            return
        written = f"{found['mark']}{key}={spelled}"
        if parsed(f"{found['mark']}{key}=1") is None:
            self._error(key, "is no key", "write key=value, where the key has letters a-z, digits, _ and dots")
        self._words.overrides.append(written)

    # Names -------------------------------------------------------------------------------------------------------

    def _bare(self, word: str) -> None:
        """A word without a key: a file of a command that takes files, or a mistake."""
        if exists(word) and self._positional:
            self._words.names.append(word)
        elif word == "=" or (self._left and self._left[0] == "=") or word in self._readings:
            self._spaced(word)
        elif self._positional and "=" not in word:
            self._words.names.append(word)
        else:
            self._error(word if word else "''", *self._misplaced(word))

    def _spaced(self, word: str) -> None:
        """A mistake: ``key = value``, or ``key value``."""
        rest = [self._left.pop(0)] if self._left and self._left[0] == "=" else []
        value = ""
        if self._left and not self._left[0].startswith("-") and not self._is_override(self._left[0]):
            value = self._left.pop(0)
        if word == "=":
            self._error("=", "stands alone", "write key=value without spaces")
            return
        what = "is followed by a space" if rest or value else "has no value"
        self._error(word, what, f"write {shlex.quote(f'{word}={value}') if value else f'{word}=…'}")

    def _misplaced(self, word: str) -> tuple[str, str]:
        """What is wrong with a word that is neither a flag nor key=value, and what to type."""
        if "=" in word:
            if self._positional:
                return "is neither key=value nor a file that exists", "check the name"
            return "is not key=value", "start with the name of a key"
        key = self._key_of(word)
        if key is not None:
            return f"{self._name} takes key=value", f"write {shlex.quote(f'{key}={word}')}"
        near = closest(word, self._keys())
        if near is not None:
            return f"{self._name} takes key=value", f"did you mean {near}=…?"
        return f"{self._name} takes key=value", f"ssl-asr {self._name} --help lists the keys"

    def _key_of(self, word: str) -> str | None:
        """The key that a name is for, a manifest or a model, or None if the name does not say it."""
        keys = {*self._readings, *first_parts(self._name)}
        model = next((key for key in ("model", "backbone") if key in keys), None)
        is_checkpoint = exists(word) and (Path(word).is_dir() or word.endswith(".ckpt"))
        # Names of pretrained models on the Hub have a slash.
        is_name = not exists(word) and ("/" in word or word in option_names("backbone"))
        if model is not None and ((is_checkpoint and model == "model") or (is_name and not word.endswith(".jsonl"))):
            return model
        manifest = next((key for key in ("data.train", "manifest") if key in keys), None)
        return manifest if exists(word) or word.endswith(".jsonl") else None

    def _name_words(self) -> None:
        """Give the names to the positional keys."""
        names, keys = self._words.names, self._positional
        given = {override.lstrip("+").partition("=")[0] for override in self._words.overrides}
        if not names:
            return
        if not keys:
            for name in names:
                self._error(name, *self._misplaced(name))
            return
        if "" in names:
            self._error(keys[-1], "a name is empty", "check for an empty variable in the command")
        # Single keys take the first names, and a list the rest.
        listed = keys[-1] if self._readings[keys[-1]].listed else None
        single = [key for key in keys if key not in given and key != listed]
        if len(names) < len(single) or (listed is None and len(names) > len(single)):
            words = " ".join(key.upper() if key != listed else f"[{key.upper()} …]" for key in keys)
            number = f"{len(keys)} names" if listed is None else f"{len(keys) - 1} names or more"
            what = f"takes {number}, {words}, and got {len(names) + sum(key in given for key in keys)}"
            self._error(self._name, what, f"write ssl-asr {self._name} {words}")
            return
        rest = names[len(single) :]
        if rest and listed in given:
            both = f"is given twice: {listed}=… and {shlex.join(rest[:3])}"
            self._error(str(listed), both, f"leave out {listed}=, and name all files")
        named = [f"{key}={literal(name)}" for key, name in zip(single, names, strict=False)]
        if rest:
            named.append(f"{listed}=[{','.join(map(literal, rest))}]")
        self._words.overrides[:0] = named
