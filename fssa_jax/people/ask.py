"""Asks a person in the terminal which of two responses they like better."""

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fssa_jax.data.records import BadRecord, read_records
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
      UserError: no pairs, or one that is not two different texts to a prompt.

    >>> from fssa_jax.people.ask import ask
    >>> pair = {"prompt": "How are you?", "response_a": "Great!", "response_b": "I am well, thank you."}
    >>> ask([pair], 1, read=lambda question: "2", write=lambda text: None)[0]["choice"]
    1
    """
    chosen: list[dict[str, Any]] = []
    check_pairs(pairs)
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


def check_pairs(pairs: Sequence[Any]) -> None:
    """Raises `UserError` if there are no pairs, or if one is not two different texts to a prompt."""
    if not pairs:
        raise UserError("no pairs to ask about; give rows of prompt, response_a and response_b")
    for i, pair in enumerate(pairs):
        if not isinstance(pair, Mapping):
            raise UserError(f"pair {i}: not a row of prompt, response_a and response_b")
        if missing := next((key for key in ("prompt", "response_a", "response_b") if not pair.get(key)), None):
            raise UserError(f"pair {i}: column {missing!r} is missing or empty; fill it in")
        as_prompt(pair["prompt"], f"pair {i}")
        responses = [pair[name] for name in ("response_a", "response_b")]
        if not all(isinstance(text, str) and text.strip() for text in responses) or responses[0] == responses[1]:
            raise UserError(f"pair {i}: response_a and response_b must be two different texts")


def read_pairs(path: str) -> list[Any]:
    """The pairs of a file, checked.

    Raises:
      UserError: see `check_pairs`; or a file that cannot be read.
    """
    out = []
    for record in read_records(path):
        if isinstance(record, BadRecord):
            raise UserError(f"{record.place}: {record.reason}")
        out.append(record.values)
    check_pairs(out)
    return out


def questions(read: Callable[[str], str] = input) -> Iterator[str]:
    """Questions that the person types, until an empty one."""
    while True:
        try:
            question = read("\nAsk something (empty to end): ").strip()
        except EOFError:
            return
        if not question:
            return
        yield question


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
