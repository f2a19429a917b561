"""What the user reads after a mistake."""

from typing import Any

import pytest

from fssa_jax.errors import UserError


def complaint(action, *args) -> str:
    """The one line that `action(*args)` ends with."""
    with pytest.raises(UserError) as caught:
        action(*args)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def outcome(action) -> tuple[Any, str]:
    """(what `action()` returns, "") or (None, the one line that it ends with). Other errors are faults."""
    try:
        return action(), ""
    except UserError as error:
        message = str(error)
    assert message
    assert "\n" not in message
    assert len(message) < 2100
    return None, message
