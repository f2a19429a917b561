"""Mistakes that a user can mend."""


class UserError(Exception):
    """Bad input. The message is one line that names the place and the remedy; programs print it and
    exit with status 2, without a traceback."""


class Stopped(Exception):  # noqa: N818 (nothing went wrong)
    """SIGTERM came: the state is saved, and the same command goes on from there."""
