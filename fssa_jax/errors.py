"""Errors that a user can fix, and text from files that is safe to show on a terminal."""

import unicodedata

_LONGEST = 2000  # characters of a message

# Controls, marks that change the direction of text, and halves of characters.
_HIDDEN = ("Cc", "Cs", "Zl", "Zp")
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str, keep: str = "") -> str:
    r"""Text with its control characters as escapes, so that a terminal shows them instead of obeying them.

    Args:
      text: from a file, a model, or a message that quotes one.
      keep: control characters that stay, such as line breaks.

    >>> from fssa_jax.errors import printable
    >>> print(printable("red: \x1b[31m"))
    red: \x1b[31m
    """
    if text.isprintable():
        return text
    hidden = {c for c in set(text) if (unicodedata.category(c) in _HIDDEN or c in _TURNING) and c not in keep}
    return "".join(c.encode("unicode_escape").decode("ascii") if c in hidden else c for c in text)


class UserError(ValueError):
    """Bad input. The message is one line that names the place and the remedy; programs print it and
    exit with status 2, without a traceback.

    >>> from fssa_jax import UserError
    >>> issubclass(UserError, ValueError)
    True
    """

    def __init__(self, message: str):
        line = printable(" ".join(message.split("\n")))
        super().__init__(line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …")


class Stopped(Exception):  # noqa: N818 (nothing went wrong)
    """SIGTERM was received: the state is saved, and the same command resumes from it."""
