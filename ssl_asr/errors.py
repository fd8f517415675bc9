"""Errors for users: where the error is, what is wrong, and what to do.

All errors that a user can cause derive from `UserError`. Commands print them without a traceback and exit with code 2.
Invariants of the framework itself are checked by `assert`.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

# A list of known names in a message is cut to some names if it has more characters.
_MOST_CHARACTERS, _MOST_NAMES = 200, 5
# Control characters, and those that end a line.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def _sentence(text: str, *, capital: bool = False) -> str:
    """The text with a full stop, and on request with a capital, unless it starts with a key or another symbol."""
    first = text.partition(" ")[0]
    if capital and first.isalpha():
        text = text[0].upper() + text[1:]
    return text if text.endswith((".", "?", "!", "…")) else f"{text}."


def _on_one_line(text: str) -> str:
    """The text with control characters as escapes, which names of files and values of settings may have."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


class UserError(ValueError):
    """An error that the user can correct. Its message is one line.

    Args:
        where: Config key, ``file:line``, path or utterance id.
        what: What is wrong, with the value seen and the values allowed.
        remedy: What to do. Default: "" (nothing to suggest).
    """

    def __init__(self, where: str, what: str, remedy: str = "") -> None:
        self.where, self.what, self.remedy = where, what, remedy
        message = f"{where}: {_sentence(what)}" + (f" {_sentence(remedy, capital=True)}" if remedy else "")
        super().__init__(_on_one_line(message))

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str, str]]:
        return type(self), (self.where, self.what, self.remedy)


class ConfigError(UserError):
    """A config key is unknown, missing, of the wrong type, or in conflict with another key."""


class ManifestError(UserError):
    """A manifest cannot be read, or has an invalid line."""


class AudioError(UserError):
    """An audio file cannot be used. ``reason`` is a short name, by which dropped utterances are counted."""

    def __init__(self, where: str, what: str, remedy: str = "", reason: str = "bad_audio") -> None:
        super().__init__(where, what, remedy)
        self.reason = reason

    def __reduce__(self) -> tuple[type["AudioError"], tuple[str, str, str, str]]:  # type: ignore[override]
        return AudioError, (self.where, self.what, self.remedy, self.reason)


class CheckpointError(UserError):
    """A checkpoint, run directory or pretrained model cannot be found or read."""


class LanguageModelError(UserError):
    """A language model, lexicon or list of hotwords cannot be read, or does not match the vocabulary."""


class TrainingError(UserError):
    """Training cannot continue, for example after several non-finite updates in a row."""


class UserErrors(UserError):
    """Several errors, reported together.

    Args:
        errors: At least one error.
        shown: Maximum number of errors in the message. Default: 20.

    Example:
        >>> raise UserErrors([ConfigError("a", "unknown key"), ConfigError("b", "missing")])
        Traceback (most recent call last):
        ssl_asr.errors.UserErrors: a: unknown key.
        b: missing.
    """

    def __init__(self, errors: Sequence[UserError], shown: int = 20) -> None:
        assert errors
        self.errors = list(errors)
        lines = [str(error) for error in self.errors[:shown]]
        if len(self.errors) > shown:
            lines.append(f"… and {len(self.errors) - shown} more")
        ValueError.__init__(self, "\n".join(lines))

    def __reduce__(self) -> tuple[type["UserErrors"], tuple[list[UserError]]]:  # type: ignore[override]
        return UserErrors, (self.errors,)


def raise_all(errors: Sequence[UserError]) -> None:
    """Raise a list of errors: nothing if it is empty, the error itself if there is one, otherwise `UserErrors`."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise UserErrors(errors)


@contextmanager
def collecting(errors: list[UserError]) -> Iterator[None]:
    """Append the errors of a block to a list, in place of raising them."""
    try:
        yield
    except UserErrors as several:
        errors += several.errors
    except UserError as error:
        errors.append(error)


@contextmanager
def naming(key: str, path: object) -> Iterator[None]:
    """Put a config key in front of the errors of a block whose place is a file.

    Args:
        key: The key that names the file.
        path: The file. Errors of its lines name the line already, and stay as they are.
    """
    errors: list[UserError] = []
    with collecting(errors):
        yield
    raise_all(
        [
            type(error)(f"{key}: {path}", error.what, error.remedy) if error.where == str(path) else error
            for error in errors
        ]
    )


def overwrites(path: object, key: str = "output") -> ConfigError:
    """The error for a file that a command reads and would write."""
    return ConfigError(key, f"{path} is an input and would be overwritten", "give another name")


def exists_already(path: object, key: str = "output", what: str = "exists already") -> ConfigError:
    """The error for results of an earlier command, which are not overwritten unless the user asks for it."""
    return ConfigError(key, f"{path} {what}", "write overwrite=true to replace it, or give another name")


def missing_extra(where: str, package: str, extra: str, otherwise: str = "") -> ConfigError:
    """The error for an option that needs a package of an optional extra.

    Args:
        where: str, the option or file that needs the package.
        package: str, name of the package that cannot be imported.
        extra: str, the extra of ssl_asr that installs the package.
        otherwise: str, another option that does without the package. Default: none.

    Returns:
        A `ConfigError` that names the package and the ``pip install`` command.
    """
    remedy = f"run pip install 'ssl_asr[{extra}]'" + (f", or use {otherwise}" if otherwise else "")
    return ConfigError(where, f"needs the package {package}, which is not installed", remedy)


@contextmanager
def optional_import(where: str, package: str, extra: str, otherwise: str = "") -> Iterator[None]:
    """A block that imports the package of an optional extra.

    Args: See `missing_extra`.

    Raises:
        ConfigError: The package cannot be imported.
    """
    try:
        yield
    except ImportError:
        raise missing_extra(where, package, extra, otherwise) from None


def closest(name: str, known: Sequence[str]) -> str | None:
    """The known name that is most similar to a name, or None. Case and the kind of dash make no difference.

    Example:
        >>> closest("Whisper-Mediun", ["whisper_small", "whisper_medium"])
        'whisper_medium'
    """
    plain = {_plain(each): each for each in reversed(known)}
    near = difflib.get_close_matches(_plain(name), plain, n=1)
    return plain[near[0]] if near else None


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def did_you_mean(name: str, known: Sequence[str], listing: str = "") -> str:
    """Remedy for an unknown name: the most similar known name, or a few known names if none is similar.

    Args:
        name: The unknown name.
        known: All known names.
        listing: Command that lists the known names, for long lists. Default: "" (no such command).
    """
    near = closest(name, known)
    if near is not None:
        return f"did you mean '{near}'?"
    shown = sorted(known)
    if len(", ".join(shown)) <= _MOST_CHARACTERS:
        return f"known names: {', '.join(shown) or 'none'}"
    few = f"{', '.join(shown[:_MOST_NAMES])}, and {len(shown) - _MOST_NAMES} more"
    return f"known names: {few}. {listing} lists them" if listing else f"known names: {few}"
