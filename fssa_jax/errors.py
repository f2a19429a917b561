"""Errors that a user can fix."""


class UserError(ValueError):
    """Bad input. The message is one line that names the place and the remedy; programs print it and
    exit with status 2, without a traceback.

    >>> from fssa_jax import UserError
    >>> issubclass(UserError, ValueError)
    True
    """


class Stopped(Exception):  # noqa: N818 (nothing went wrong)
    """SIGTERM was received: the state is saved, and the same command resumes from it."""
