"""Errors meant for people: what is wrong, where, and what to do about it.

Everything a user can cause derives from `UserError`; the entry points print it without a traceback and exit
with code 2. Broken invariants of our own are `assert`ions instead.
"""

import difflib
from collections.abc import Sequence


class UserError(ValueError):
    """Something the user can mend, said as one message.

    Args:
        where: the config key, ``file:line``, path or utterance id at fault.
        what: what is wrong there, with the value seen.
        remedy: what to do about it.
    """

    def __init__(self, where: str, what: str, remedy: str = "") -> None:
        self.where, self.what, self.remedy = where, what, remedy
        super().__init__(f"{where}: {what}" + (f" ({remedy})" if remedy else ""))

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str, str]]:
        return type(self), (self.where, self.what, self.remedy)


class ConfigError(UserError):
    """A config key is unknown, missing, of the wrong type, or at odds with another."""


class ManifestError(UserError):
    """A manifest cannot be read or a line of it is wrong."""


class AudioError(UserError):
    """An audio file cannot be used; ``reason`` is the short name the kept-and-dropped table counts by."""

    def __init__(self, where: str, what: str, remedy: str = "", reason: str = "bad_audio") -> None:
        super().__init__(where, what, remedy)
        self.reason = reason

    def __reduce__(self) -> tuple[type["AudioError"], tuple[str, str, str, str]]:  # type: ignore[override]
        return AudioError, (self.where, self.what, self.remedy, self.reason)


class CheckpointError(UserError):
    """A checkpoint, run directory or pretrained name cannot be found or read."""


class LanguageModelError(UserError):
    """A language model, lexicon or list of hotwords cannot be read or does not fit the vocabulary."""


class TrainingError(UserError):
    """Training cannot go on, for instance after several non-finite updates in a row."""


class UserErrors(UserError):
    """Several errors found in one look, reported together.

    Example:
        >>> raise UserErrors([ConfigError("a", "unknown key"), ConfigError("b", "missing")])
        Traceback (most recent call last):
        ssl_asr.errors.UserErrors: a: unknown key
        b: missing
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
    """Raise nothing for an empty list, the error itself for one, `UserErrors` for several."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise UserErrors(errors)


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
    remedy = f"pip install 'ssl_asr[{extra}]'" + (f", or {otherwise}" if otherwise else "")
    return ConfigError(where, f"needs the package {package}, which is not installed", remedy)


def did_you_mean(name: str, known: list[str]) -> str:
    """A remedy for an unknown name: the nearest one, or all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(sorted(known)) or 'none'}"
