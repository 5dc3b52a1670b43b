"""The few errors that a user can mend: each message is one sentence that says what to do.

A script prints it on stderr after 'error: ' and ends with status 1, without a traceback.
"""

import pickle


class DataError(ValueError):
    """The data can't be used as it is; the message says which file, and what to do."""


class RunError(RuntimeError):
    """A run can't begin or continue; the message says why, and what to do."""


class WeightsError(RunError):
    """A file of weights can't be read or doesn't fit; the message says which, and what to do."""


class ReportError(RuntimeError):
    """There is nothing to report; the message says where, and what to do."""


class Interrupted(Exception):
    """A signal has asked a run to end; its arguments are the signal, and the state or None."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, without its full stop, to stand inside a sentence."""
    if isinstance(error, pickle.UnpicklingError):  # whose own line advises to load it unsafely
        return "it holds something else, or code"
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
