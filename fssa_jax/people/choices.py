"""Inputs for a person: choices, as tuples or rows, and responses to score."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fssa_jax.data.features import Text
from fssa_jax.data.rows import Row, parse_row, read_records, read_rows
from fssa_jax.errors import UserError

Choice = tuple[str, str, str]  # (prompt, chosen, rejected)


def as_choice(choice: Any, place: str) -> Choice:
    """Checks one choice of a person, (prompt, chosen, rejected) or a row (data/rows.py), and returns the tuple.

    Raises:
      UserError: neither of these, or its responses are empty or identical.
    """
    if isinstance(choice, Mapping):
        choice = parse_row({**choice, "user_id": "you"}, place)
    if isinstance(choice, Row):
        choice = (choice.prompt, choice.chosen, choice.rejected)
    if not (isinstance(choice, tuple | list) and len(choice) == 3 and all(isinstance(text, str) for text in choice)):
        raise UserError(f"{place}: needs three texts, (prompt, chosen, rejected), or a row; got {choice!r:.80}")
    if choice[1] == choice[2] or not (choice[1].strip() and choice[2].strip()):
        raise UserError(f"{place}: the responses are empty or identical; leave it out")
    return (choice[0], choice[1], choice[2])


def as_texts(responses: Any) -> list[Text]:
    """Checks a list of (prompt, response) pairs.

    Raises:
      UserError: anything else is given.
    """
    if isinstance(responses, str):
        raise UserError("a text instead of a list of (prompt, response); give [(prompt, response)]")
    for i, text in enumerate(responses):
        if not (isinstance(text, tuple | list) and len(text) == 2 and all(isinstance(part, str) for part in text)):
            raise UserError(f"response {i}: needs two texts, (prompt, response); got {text!r:.80}")
        if not text[1].strip():
            raise UserError(f"response {i}: empty; leave it out")
    return [(prompt, response) for prompt, response in responses]


def read_choices(path: str | Path) -> list[Choice]:
    """Reads the choices of one person from a file of rows, in order, without duplicates.

    `user_id` may be left out.

    Raises:
      UserError: bad rows, no rows, or several people.
    """
    rows, _ = read_rows(str(path), person="you")
    people = sorted({row.user for row in rows})
    if len(people) > 1:
        raise UserError(f"{path}: choices of {len(people)} people ({people[0]}, {people[1]} …); give one person's")
    return [as_choice(row, row.place) for row in rows]


def read_responses(path: str | Path) -> list[Text]:
    """Reads (prompt, response) from rows with these two columns, in any format of `read_rows`, without duplicates.

    Raises:
      UserError: a row without one of the columns, or no rows at all.
    """
    texts: list[Text] = []
    for place, record in read_records(str(path), ("prompt", "response")):
        if not (isinstance(record, dict) and all(isinstance(record.get(n), str) for n in ("prompt", "response"))):
            raise UserError(f"{place}: needs texts in columns 'prompt' and 'response'; fill them in")
        if not record["response"].strip():
            raise UserError(f"{place}: column 'response' is empty; remove the row or fill it in")
        texts.append((record["prompt"], record["response"]))
    if not texts:
        raise UserError(f"{path}: no responses to rank; write rows of prompt, response")
    return list(dict.fromkeys(texts))


def texts_of_choices(people: Iterable[Sequence[Choice]]) -> list[Text]:
    """Both texts of every choice, without duplicates."""
    return list(dict.fromkeys(text for choices in people for p, a, b in choices for text in ((p, a), (p, b))))
