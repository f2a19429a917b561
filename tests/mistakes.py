"""What the user reads after a mistake."""

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
