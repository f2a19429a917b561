"""Messages are one line without control characters, whatever they quote."""

import logging

import pytest

from fssa_jax import program
from fssa_jax.errors import UserError, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain größe 名前 😊", "plain größe 名前 😊"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("a\rb\x00c\x7f", "a\\rb\\x00c\\x7f"),
        ("\u202eturned", "\\u202eturned"),
        ("half \ud83d", "half \\ud83d"),
        ("two\u2028lines", "two\\u2028lines"),
    ],
)
def test_control_characters_are_escapes(text, shown):
    assert printable(text) == shown


def test_line_breaks_may_stay():
    assert printable("a\nb\tc\x1b", keep="\n\t") == "a\nb\tc\\x1b"


def test_a_message_is_one_line_of_bounded_length():
    message = str(UserError("rows.jsonl:3: got\n" + "x" * 5000 + "\x1b"))
    assert "\n" not in message
    assert "\x1b" not in message
    assert len(message) < 2100
    assert message.startswith("rows.jsonl:3: got xxx")


def test_a_message_shows_control_characters():
    assert str(UserError("a\x1b[31mb")) == "a\\x1b[31mb"


def test_a_log_is_lines_without_control_characters():
    record = logging.LogRecord("fssa_jax", logging.INFO, "file", 1, "user %s", ("\x1b[31ma\nb\tc",), None)
    assert program._OneLine("%(message)s").format(record) == "user \\x1b[31ma\\nb\tc"
