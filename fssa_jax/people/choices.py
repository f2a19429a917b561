"""Inputs for a person: choices, as tuples or rows, and responses to score."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fssa_jax.data.features import Text
from fssa_jax.data.ratings import rows_of_levels
from fssa_jax.data.reading import read_rows
from fssa_jax.data.records import BadRecord, read_records
from fssa_jax.data.rows import Row, parse_rating, parse_row, schema_of
from fssa_jax.data.thresholds import THUMB, Threshold, text_of
from fssa_jax.errors import UserError
from fssa_jax.lm.messages import join_messages

_log = logging.getLogger(__name__)

# (prompt, chosen, rejected), and further responses that were not chosen; of a text alone one is a `Threshold`.
Choice = tuple[Any, ...]


def as_choice(choice: Any, place: str) -> Choice:
    """Checks one choice of a person, (prompt, chosen, rejected, …) or a row (data/rows.py), and returns the tuple.

    (prompt, response, True) is a thumb up, and False a thumb down. The prompt may be a list of messages.

    Raises:
      UserError: neither of these, or its responses are empty or identical.
    """
    if isinstance(choice, Mapping):
        choice = parse_row({**choice, "user_id": "you"}, place)
    if isinstance(choice, Row):
        return (choice.prompt, *choice.responses)
    if isinstance(choice, tuple | list) and len(choice) == 3 and isinstance(choice[2], bool):
        prompt, response, up = choice
        choice = (prompt, response, THUMB) if up else (prompt, THUMB, response)
    if not (
        isinstance(choice, tuple | list)
        and len(choice) >= 3
        and all(isinstance(text, str | Threshold) for text in choice[1:])
    ):
        raise UserError(f"{place}: needs three texts, (prompt, chosen, rejected), or a row; got {choice!r:.80}")
    prompt, *responses = choice
    if len(set(responses)) < len(responses) or not all(text.strip() for text in responses if isinstance(text, str)):
        raise UserError(f"{place}: the responses are empty or identical; leave it out")
    return (as_prompt(prompt, place), *responses)


def as_choices(choice: Any, place: str, levels: Sequence[float] = ()) -> list[Choice]:
    """`as_choice`, or the choices of a rating: between the response and the thresholds of the model's `levels`.

    Raises:
      UserError: see `as_choice`; or a rating for a model that was trained without levels of ratings.
    """
    if not isinstance(choice, Mapping) or schema_of(dict(choice)) != "ratings":
        return [as_choice(choice, place)]
    if not levels:
        raise UserError(
            f"{place}: a rating, but the model was trained without levels of ratings; leave it out, or train with "
            "--config.data.ratings=levels"
        )
    rated = parse_rating({**choice, "user_id": "you"}, place, "")
    return [as_choice(row, place) for row in rows_of_levels([rated], levels)]


def as_prompt(prompt: Any, place: str) -> str:
    """A prompt, which is a text or a list of messages, as one text.

    Raises:
      UserError: neither of these.
    """
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list | tuple):
        raise UserError(f"{place}: the prompt must be a text or a list of messages; got {prompt!r:.80}")
    return join_messages(prompt, place)


def as_texts(responses: Any) -> list[Text]:
    """Checks a list of (prompt, response) pairs.

    Raises:
      UserError: anything else is given.
    """
    if isinstance(responses, str):
        raise UserError("a text instead of a list of (prompt, response); give [(prompt, response)]")
    for i, text in enumerate(responses):
        if not (isinstance(text, tuple | list) and len(text) == 2 and isinstance(text[1], str)):
            raise UserError(f"response {i}: needs two texts, (prompt, response); got {text!r:.80}")
        if not text[1].strip():
            raise UserError(f"response {i}: empty; leave it out")
    return [(as_prompt(prompt, f"response {i}"), response) for i, (prompt, response) in enumerate(responses)]


def read_choices(path: str | Path, levels: Sequence[float] = ()) -> list[Choice]:
    """Reads the choices of one person from a file of rows, in order, without duplicates.

    `user_id` may be left out. `levels` are those of the model (`PersonModel.levels`), for ratings. Without them ratings
    become pairs, in a file of ratings alone.

    Raises:
      UserError: bad rows, no rows, or several people.
    """
    rows, report = read_rows(
        str(path), person="you", ratings="levels" if len(levels) else "pairs", levels=tuple(levels)
    )
    left_out = {"ties": report.ties, "unanswered questions": report.unanswered, "duplicates": report.duplicates}
    if any(left_out.values()):
        said = ", ".join(f"{number} {what}" for what, number in left_out.items() if number)
        _log.warning("%s: left out %s", path, said)
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
    for record in read_records(str(path)):
        place = record.place
        if isinstance(record, BadRecord):
            raise UserError(f"{place}: {record.reason}")
        values = record.values if isinstance(record.values, dict) else {}
        response = values.get("response")
        if not isinstance(response, str) or not isinstance(values.get("prompt"), str | list):
            raise UserError(f"{place}: needs texts in columns 'prompt' and 'response'; fill them in")
        if not response.strip():
            raise UserError(f"{place}: column 'response' is empty; remove the row or fill it in")
        texts.append((as_prompt(values["prompt"], place), response))
    if not texts:
        raise UserError(f"{path}: no responses to rank; write rows of prompt, response")
    return list(dict.fromkeys(texts))


def texts_of_choices(people: Iterable[Sequence[Choice]]) -> list[Text]:
    """All texts of every choice, without duplicates."""
    return list(
        dict.fromkeys(text_of(p, response) for choices in people for p, *responses in choices for response in responses)
    )
