"""The error family: one root, standard-library parents, and each message names the value, the place and the remedy.

A bad rollout is data (``types.Status``); a bad program or a bad input is one of these.
"""

from __future__ import annotations


class TruingError(Exception):
    """Root of every error that Truing raises on purpose; the command line prints it without a traceback."""


class ConfigError(TruingError, ValueError):
    """A recipe or an option that cannot be meant: unknown key, value out of range, contradiction."""


class DataError(TruingError, ValueError):
    """Input data that breaks a rule; the message starts with ``file:line``."""


class ModelError(TruingError, ValueError):
    """A model, tokenizer or adapter that is missing, unsafe or does not fit."""


class CheckpointError(TruingError, OSError):
    """A checkpoint that is corrupt, incomplete or could not be written."""


class RunBusyError(TruingError, OSError):
    """Another live process holds the run folder."""


class RewardError(TruingError, RuntimeError):
    """The reward failed too often, or has the wrong shape or type."""


class NonFiniteError(TruingError, ArithmeticError):
    """NaN or infinity where a finite number was needed, after the bounded retries."""


class MissingExtraError(TruingError, ImportError):
    """A feature needs a package that is not installed; the message names the extra."""
