"""Asks a person in the terminal which of two responses they like better."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fssa_jax.errors import UserError, printable
from fssa_jax.lm.messages import readable
from fssa_jax.people.choices import as_prompt

_WIDTH = 100
_HELP = "1 or 2: the one you like better; s: skip; q: that is enough"


def ask(
    pairs: Sequence[Mapping[str, Any]],
    number: int,
    read: Callable[[str], str] = input,
    write: Callable[[str], Any] = print,
) -> list[dict[str, Any]]:
    """Shows pairs of responses until `number` choices were made, all pairs were shown, or the person has had enough.

    Args:
      pairs: rows of prompt, response_a and response_b.
      number: choices to ask for.
      read: shows a question and returns the answer; raises EOFError where nobody can answer.
      write: shows a text.

    Returns:
      The pairs with a `choice`, 0 or 1, as rows of a file (data/rows.py).

    Raises:
      UserError: a pair that lacks one of these.

    >>> from fssa_jax.people.ask import ask
    >>> pair = {"prompt": "How are you?", "response_a": "Great!", "response_b": "I am well, thank you."}
    >>> ask([pair], 1, read=lambda question: "2", write=lambda text: None)[0]["choice"]
    1
    """
    chosen: list[dict[str, Any]] = []
    for i, pair in enumerate(pairs):
        if missing := next((key for key in ("prompt", "response_a", "response_b") if not pair.get(key)), None):
            raise UserError(f"pair {i}: column {missing!r} is missing or empty; fill it in")
    for pair in pairs:
        if len(chosen) >= number:
            break
        write(f"\n[{len(chosen) + 1} of {number}] {printable(readable(as_prompt(pair['prompt'], 'pair')))}")
        write(shown("1", pair["response_a"]))
        write(shown("2", pair["response_b"]))
        try:
            answer = _answer(read, write)
        except EOFError:
            break
        if answer == "q":
            break
        if answer != "s":
            chosen.append({**pair, "choice": int(answer) - 1})
    return chosen


def shown(name: str, text: str) -> str:
    """A response with its name, wrapped and indented."""
    lines = [
        part for line in printable(text, keep="\n").splitlines() for part in textwrap.wrap(line, _WIDTH - 6) or [""]
    ]
    return "\n".join(f"  {name if i == 0 else ' ' * len(name)}  {line}" for i, line in enumerate(lines))


def _answer(read: Callable[[str], str], write: Callable[[str], Any]) -> str:
    while True:
        answer = read("  1, 2, s(kip) or q(uit)? ").strip().lower()[:1]
        if answer in ("1", "2", "s", "q"):
            return answer
        write(f"  {_HELP}")
