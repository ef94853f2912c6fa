"""What a user or the world can cause, each with the exit code that says what to do next (docs/train.md lists them)."""


class LacunaError(Exception):
    """Base of every refusal; its text is one or two sentences that name the thing, what is allowed and what to do."""

    exit_code = 1


class SavedForLater(LacunaError):
    """The run's state is safe on disk; run the same command again to go on (preemption, wall time, a lost peer)."""

    exit_code = 75


class DataError(LacunaError):
    """Data is unavailable, was changed under the run, or has more bad samples than the error budget allows."""

    exit_code = 76


class CheckpointError(LacunaError):
    """The run has history but no checkpoint that verifies, or one that does not fit this run."""

    exit_code = 77


class ConfigError(LacunaError, ValueError):
    """A setting, flag or file that cannot be meant; raised before anything is allocated, opened or spawned."""

    exit_code = 78


class NumericalError(LacunaError):
    """Too many steps in a row with a loss or gradient that is not finite."""

    exit_code = 79


class CrashLoopError(LacunaError):
    """The scheduler starts the run again and again, and no attempt gets as far as a new checkpoint."""

    exit_code = 79


class FencedError(LacunaError):
    """A newer attempt owns this run; this process must not write to it any more."""

    exit_code = 80
