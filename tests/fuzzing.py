"""How the readers of users' files meet random input: number of tries, settings, and what a reader may do.

Each reader has 2,000 tries. More tries, of all readers or of those of one file::

    SSL_ASR_FUZZ=100000 python -m pytest -m fuzz
    SSL_ASR_FUZZ=100000 python -m pytest -m fuzz tests/data/test_manifest_fuzz.py

Tries are the same in each run with 2,000, and others in each run with another number. A failure prints its seed.
"""

import faulthandler
import math
import os
import signal
import sys
from contextlib import contextmanager
from functools import partial

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ssl_asr.errors import UserError, UserErrors

_TRIES = int(os.environ.get("SSL_ASR_FUZZ", "2000"))
_SETTINGS = settings(
    # Readers stop by `time_limit`. A slow try on a busy machine is no failure.
    deadline=None,
    derandomize="SSL_ASR_FUZZ" not in os.environ,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
# A file of some bytes is read in milliseconds. The limit is CPU time, which does not grow on a busy machine.
_LIMIT_S = 30
# Longest message about one place.
_LONGEST = 1000


def fuzz(test=None, *, parts=1):
    """A test with the argument ``seed``, from which it makes its input.

    Hypothesis draws only the seed: drawing every word by it takes twenty times as long as reading a file.

    Args:
        test: The test.
        parts: The tests of a reader that share its tries.
    """
    if test is None:
        return partial(fuzz, parts=parts)
    tries = settings(_SETTINGS, max_examples=math.ceil(_TRIES / parts))
    return pytest.mark.fuzz(tries(given(seed=st.integers(0, 2**64))(test)))


class TooLongError(BaseException):
    """Not an Exception, so that no reader catches it."""


def _too_long(*_):
    raise TooLongError(f"reading took more than {_LIMIT_S} s of CPU time")


@contextmanager
def time_limit():
    """Ends a block that hangs. If it hangs in C code, the process ends too, and prints where."""
    previous = signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, _LIMIT_S)
    faulthandler.dump_traceback_later(20 * _LIMIT_S, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def result_of(read, where):
    """What a reader returns, or None if it raises errors for users that say where, briefly. All else is a failure."""
    with time_limit():
        try:
            return read()
        except UserError as error:
            problems = error.errors if isinstance(error, UserErrors) else [error]
    for problem in problems:
        message = str(problem)
        assert message.startswith(f"{where}:"), message
        assert len(message) <= _LONGEST, message
    return None
