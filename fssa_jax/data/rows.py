"""Choices of people as rows: the schemas that name the person, and checks of every value.

A row has `user_id` and one of these; `prompt` is a text or a list of messages, and "" if it is absent:

| columns | a choice is |
|---|---|
| response_a, response_b, choice | one of two: 0, "a" or false for the first, 1, "b" or true for the second |
| chosen, rejected | one of two, as in TRL: texts, or lists of messages whose shared beginning is the prompt |
| responses, choice | one of n: the place of the chosen response in the list, from 0 |
| ranking | the best of all, then of the rest, and so on: responses, the best first |
| response, label | of a text alone: true or "up" if it is liked, false or "down" if not; `completion` as in TRL's KTO |
| response, rating | see data/ratings.py |

Optional columns are group, split_user, split_item, pool and situation; and unfinished, which says of each response, in
the order of the columns, whether it was cut off before its end: [false, true], or true for a text alone. A bad row is
an error that names file, row and column.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fssa_jax.data.conversations import split_pair
from fssa_jax.data.thresholds import THUMB, Response, Threshold, text_of
from fssa_jax.errors import UserError
from fssa_jax.lm.messages import join_messages

Schema = Literal["choices", "pairs", "one_of_n", "ranking", "thumbs", "ratings", "ultrafeedback", "crowd"]
Ties = Literal["drop", "half"]
Ratings = Literal["pairs", "levels"]

REQUIRED: dict[Schema, tuple[str, ...]] = {
    "choices": ("user_id", "response_a", "response_b", "choice"),
    "pairs": ("user_id", "chosen", "rejected"),
    "one_of_n": ("user_id", "responses", "choice"),
    "ranking": ("user_id", "ranking"),
    "thumbs": ("user_id", "response", "label"),
    "ratings": ("user_id", "response", "rating"),
}
ALLOWED = {
    "split_user": ("train", "val", "test"),
    "split_item": ("train", "val", "test"),
    "pool": ("context", "target"),
}
_OF_CHOICES: tuple[Schema, ...] = ("choices", "pairs", "one_of_n", "ranking", "thumbs")
_CHOICES = {"0": 0, "a": 0, "false": 0, "response_a": 0, "1": 1, "b": 1, "true": 1, "response_b": 1}
_YES, _NO = ("1", "true", "up", "yes"), ("0", "false", "down", "no")
_TIES = ("tie", "tied", "draw", "equal", "both", "0.5")
_UNANSWERED = ("", "skip", "skipped", "none", "neither", "unsure", "nan", "null")


@dataclasses.dataclass(frozen=True)
class Row:
    """One checked choice; absent optional columns are "".

    Where a text is judged alone, a `Threshold` takes the place of the other response: it is rejected if the text is
    liked, and chosen if not. `others` are further responses that were not chosen, in a choice of one of more than two.
    `weight` is ½ for each of the two choices that a tie is kept as. `unfinished` are those of the responses that were
    cut off before their end. `split` is the split that the source itself puts the row in.
    """

    user: str
    prompt: str
    chosen: Response
    rejected: Response
    others: tuple[str, ...] = ()
    weight: float = 1.0
    unfinished: frozenset[str] = frozenset()
    group: str = ""
    split_user: str = ""
    split_item: str = ""
    pool: str = ""
    situation: str = ""
    split: str = ""
    place: str = ""

    @property
    def responses(self) -> tuple[Response, ...]:
        """All responses of the choice, the chosen one first."""
        return (self.chosen, self.rejected, *self.others)

    @property
    def texts(self) -> list[tuple[str, str]]:
        """(prompt, response) of all responses, the chosen one first; of a threshold its row of the table of texts."""
        return [text_of(self.prompt, response) for response in self.responses]

    @property
    def alone(self) -> bool:
        """Whether a text was judged alone, by a thumb or a rating."""
        return any(isinstance(response, Threshold) for response in self.responses)


@dataclasses.dataclass(frozen=True)
class Rated:
    """A response with a person's rating; `common` are the optional columns, but for `unfinished`."""

    user: str
    prompt: str
    response: str
    rating: float
    common: Mapping[str, Any]
    place: str
    unfinished: bool = False


@dataclasses.dataclass
class RowReport:
    """A report of the rows that were read and left out."""

    read: int = 0
    duplicates: int = 0
    skipped: list[str] = dataclasses.field(default_factory=list)
    ties: int = 0
    unanswered: int = 0
    halved: int = 0
    """Ties that were kept as two choices, one each way."""
    implicit: int = 0
    """Pairs of texts whose prompt was taken from their shared beginning."""
    thumbs: int = 0
    levels: list[float] = dataclasses.field(default_factory=list)
    """The lowest rating of every level but the first, where ratings are read as levels."""
    unpaired: int = 0
    """People whose ratings give no choice."""
    undecided: list[str] = dataclasses.field(default_factory=list)
    """Places of ties and unanswered questions, with what they say."""


class Undecided(Exception):  # noqa: N818 (the row is well formed)
    """A row without a choice: a tie, or a question that was not answered."""


def schema_of(values: Any) -> Schema:
    """The schema of a record, by its columns."""
    names = set(values) if isinstance(values, dict) else set()
    if {"completions", "instruction"} <= names:
        return "ultrafeedback"
    if {"chosen", "rejected"} <= names:
        return "pairs" if "user_id" in names else "crowd"
    if "ranking" in names:
        return "ranking"
    if "responses" in names:
        return "one_of_n"
    if "rating" in names and "response" in names:
        return "ratings"
    if "label" in names and names & {"response", "completion"}:
        return "thumbs"
    return "choices"


def own_schema(values: Any, schema: Schema, ratings: Ratings = "pairs") -> Schema:
    """The schema of a record in a source of some schema: all may be mixed, but for ratings that become pairs."""
    if schema == "ratings" and ratings == "pairs":
        return schema
    given = {name for name, value in values.items() if not is_missing(value)} if isinstance(values, dict) else set()
    if "completion" in given:
        given.add("response")
    if given.issuperset(REQUIRED.get(schema, ())):
        return schema
    for one in (*_OF_CHOICES, "ratings"):
        if given.issuperset(REQUIRED[one]):
            return one
    # A thumb without a label is a question that was not answered.
    return "thumbs" if "response" in given and schema_of(values) == "thumbs" else schema


def parse_row(values: Any, place: str) -> Row:
    """Parses one choice from a dictionary, in any of the schemas of a single choice.

    Raises:
      UserError: a bad row, a tie, or a schema of several choices. The message starts with `place` (file and row).
    """
    schema = schema_of(values)
    if schema == "ranking":
        raise UserError(f"{place}: a ranking is several choices; give choices one by one, or read them from a file")
    if schema not in ("pairs", "one_of_n", "thumbs"):
        schema = "choices"
    try:
        return parse_record(values, place, "", schema)[0]
    except Undecided as found:
        raise UserError(
            f"{place}: column {'label' if schema == 'thumbs' else 'choice'!r} says {found}; leave the row out"
        ) from found


def parse_record(values: Any, place: str, split: str, schema: Schema) -> list[Row]:
    """The choices of one record: one, or several of a ranking.

    Raises:
      UserError: a bad record.
      Undecided: a tie, or no answer.
    """
    if not isinstance(values, dict):
        raise UserError(f"{place}: not an object with named columns; write one JSON object per line")
    required = REQUIRED.get(schema)
    if required is None:
        raise UserError(f"{place}: rows of people need {', '.join(REQUIRED['choices'])}; 'user_id' is missing")
    if schema == "thumbs":
        values = _with_response(values, place)
    for name in required:
        if name not in values or (is_missing(values[name]) and name not in ("choice", "label")):
            raise UserError(f"{place}: column {name!r} is missing; needed are {', '.join(required)}")
    common: dict[str, Any] = _common(values, place) | {"split": split}
    user = _filled("user_id", values["user_id"], place)
    if schema == "thumbs":
        return [_thumb(user, values, place, common)]
    if schema == "pairs":
        asked = None if is_missing(values.get("prompt")) else values["prompt"]
        prompt, chosen, rejected = split_pair(asked, values["chosen"], values["rejected"], place)
        choices = [(prompt, [chosen, rejected])]
        unfinished = unfinished_of(values, [chosen, rejected], place)
    else:
        prompt = _prompt(values.get("prompt"), place)
        responses, ordered = _ordered(values, place, schema)
        choices = [(prompt, one) for one in ordered]
        unfinished = unfinished_of(values, responses, place)
    made = []
    for prompt, (chosen, rejected, *others) in choices:
        for name, text in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected)):
            _check_text(name, text, place)
        mine = unfinished & {chosen, rejected, *others}
        row = Row(user, prompt, chosen, rejected, tuple(others), unfinished=mine, place=place, **common)
        made.append(row)
    return made


def _thumb(user: str, values: Mapping[str, Any], place: str, common: Mapping[str, Any]) -> Row:
    prompt, response = _prompt(values.get("prompt"), place), _filled("response", values["response"], place)
    _check_text("prompt", prompt, place)
    value = values["label"]
    word = "" if is_missing(value) else re.sub(r"\.0+$", "", str(value).strip().lower())
    if word in _UNANSWERED:
        raise Undecided("no answer")
    if word not in (*_YES, *_NO):
        raise UserError(
            f"{place}: column 'label' must be true (up) or false (down), got {str(value)[:40]!r}; write true where the "
            "response is liked, false where it is not"
        )
    chosen, rejected = (response, THUMB) if word in _YES else (THUMB, response)
    unfinished = unfinished_of(values, [response], place)
    return Row(user, prompt, chosen, rejected, unfinished=unfinished, place=place, **common)


def _with_response(values: Mapping[str, Any], place: str) -> dict[str, Any]:
    """A thumb whose response is in `completion`, a text or one message, as in TRL's KTO."""
    given = values.get("completion")
    if not is_missing(values.get("response")) or is_missing(given):
        return dict(values)
    if isinstance(given, list | tuple):
        if len(given) != 1 or not isinstance(given[0], dict) or not isinstance(given[0].get("content"), str):
            raise UserError(f"{place}: column 'completion' must be a text, or a list of one message of the assistant")
        given = given[0]["content"]
    return {**values, "response": given}


def unfinished_of(values: Mapping[str, Any], responses: Sequence[str], place: str) -> frozenset[str]:
    """The responses that column `unfinished` says were cut off; it has a value for each, in their order."""
    value = values.get("unfinished")
    if is_missing(value):
        return frozenset()
    if isinstance(value, str) and value.lstrip().startswith("["):  # a cell of a CSV file
        try:
            value = json.loads(value.lower())
        except (ValueError, RecursionError):
            value = None
    each = list(value) if isinstance(value, list | tuple) else [value]
    words = [re.sub(r"\.0+$", "", str(one).strip().lower()) for one in each]
    if len(words) != len(responses) or not set(words) <= {*_YES, *_NO}:
        wanted = "true or false" if len(responses) == 1 else f"a list of {len(responses)} values, true or false"
        raise UserError(
            f"{place}: column 'unfinished' must be {wanted}, got {str(values['unfinished'])[:40]!r}; write true for a "
            "response that was cut off before its end"
        )
    return frozenset(response for response, word in zip(responses, words, strict=True) if word in _YES)


def _ordered(values: Mapping[str, Any], place: str, schema: Schema) -> tuple[list[str], list[list[str]]]:
    """The responses of a record in their order, and those of each of its choices, the chosen one first."""
    if schema == "choices":
        responses = [_filled(name, values[name], place) for name in ("response_a", "response_b")]
        if responses[0] == responses[1]:
            raise UserError(f"{place}: columns 'response_a' and 'response_b' are identical; remove the row")
        return responses, [responses if _choice(values["choice"], place) == 0 else responses[::-1]]
    if schema == "one_of_n":
        responses = _list("responses", values["responses"], place)
        index = _index(values["choice"], len(responses), place)
        return responses, [[responses[index], *responses[:index], *responses[index + 1 :]]]
    ranked = _list("ranking", values["ranking"], place)
    return ranked, [ranked[i:] for i in range(len(ranked) - 1)]


def _choice(value: Any, place: str) -> int:
    word = "" if is_missing(value) else str(value).strip().lower()
    if isinstance(value, float) and not isinstance(value, bool) and not math.isnan(value):
        word = f"{value:g}"
    elif word in ("0.0", "1.0"):
        word = word[0]
    if word in _TIES:
        raise Undecided("tie")
    if word in _UNANSWERED:
        raise Undecided("no answer")
    if word not in _CHOICES:
        raise UserError(
            f"{place}: column 'choice' must be 0 (a) or 1 (b), got {str(value)[:40]!r}; write 0 where "
            "response_a was chosen, 1 where response_b was"
        )
    return _CHOICES[word]


def _index(value: Any, number: int, place: str) -> int:
    if is_missing(value) or str(value).strip().lower() in _UNANSWERED:
        raise Undecided("no answer")
    word = re.sub(r"\.0+$", "", str(value).strip())
    if isinstance(value, bool) or not (word.isascii() and word.isdigit()) or len(word) > 9 or int(word) >= number:
        raise UserError(
            f"{place}: column 'choice' must be the place of the chosen response, 0 to {number - 1}; "
            f"got {str(value)[:40]!r}"
        )
    return int(word)


def _list(name: str, value: Any, place: str) -> list[str]:
    if isinstance(value, str) and value.lstrip().startswith("["):  # a cell of a CSV file
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: column {name!r} is not a JSON list; write a list of texts") from error
    if not isinstance(value, list | tuple) or len(value) < 2:
        raise UserError(f"{place}: column {name!r} must be a list of two or more texts")
    texts = [_filled(f"{name}", text, place) for text in value]
    if len(set(texts)) < len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise UserError(f"{place}: column {name!r} holds {twice[:40]!r} twice; remove one")
    for text in texts:
        _check_text(name, text, place)
    return texts


def parse_rating(values: Any, place: str, split: str) -> Rated:
    """The rating of a record.

    Raises:
      UserError: a bad record.
    """
    if not isinstance(values, dict):
        raise UserError(f"{place}: not an object with named columns; write one JSON object per line")
    for name in REQUIRED["ratings"]:
        if is_missing(values.get(name)):
            raise UserError(f"{place}: column {name!r} is missing; needed are {', '.join(REQUIRED['ratings'])}")
    try:
        if isinstance(values["rating"], bool):
            raise ValueError
        rating = float(values["rating"])
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{place}: column 'rating' must be a number, got {str(values['rating'])[:40]!r}") from error
    if not math.isfinite(rating):
        raise UserError(f"{place}: column 'rating' must be a finite number, got {rating}")
    user, response = (_filled(name, values[name], place) for name in ("user_id", "response"))
    prompt = _prompt(values.get("prompt"), place)
    for name, text in (("prompt", prompt), ("response", response)):
        _check_text(name, text, place)
    unfinished = bool(unfinished_of(values, [response], place))
    return Rated(user, prompt, response, rating, _common(values, place) | {"split": split}, place, unfinished)


def _common(values: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The optional columns, checked."""
    out: dict[str, Any] = {}
    for name in ("group", "situation", *ALLOWED):
        value = values.get(name)
        out[name] = "" if is_missing(value) else _text(name, value, place)
        _check_text(name, out[name], place)
        if out[name] and name in ALLOWED and out[name] not in ALLOWED[name]:
            raise UserError(f"{place}: column {name!r} must be {' or '.join(ALLOWED[name])}, got {out[name][:40]!r}")
    return out


def _prompt(value: Any, place: str) -> str:
    if is_missing(value):
        return ""
    if isinstance(value, list | tuple):
        return join_messages(value, f"{place}: column 'prompt'")
    return join_messages([{"role": "user", "content": _text("prompt", value, place)}])


def _filled(name: str, value: Any, place: str) -> str:
    text = _text(name, value, place)
    if name == "user_id":  # a whole number that a table has stored with a decimal point
        text = re.sub(r"^(-?\d+)\.0$", r"\1", text.strip())
    if not text.strip():
        raise UserError(f"{place}: column {name!r} is empty; remove the row or fill it in")
    _check_text(name, text, place)
    return text


def _text(name: str, value: Any, place: str) -> str:
    """A cell as text. Whole numbers are the same person whether they were stored as 7 or as 7.0."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        kind = type(value).__name__
        raise UserError(f"{place}: column {name!r} must be a text, got a {kind}; write one text per cell")
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        raise UserError(f"{place}: column {name!r} is {value}; write a text")
    if abs(value) > 2**53:
        raise UserError(f"{place}: column {name!r} is {value:g}, a number that has lost digits; store it as text")
    return str(int(value)) if value.is_integer() else str(value)


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: pandas writes missing texts as NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _check_text(name: str, text: str, place: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{place}: column {name!r} has a lone surrogate, half of a character; fix the text") from error


def choice_texts(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(prompt, response) of all responses of every row, the chosen one first."""
    return [text for row in rows for text in row.texts]
