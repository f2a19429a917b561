"""Reads the choices of people from a source; a bad row is an error, or counted and listed with on_error="skip"."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fssa_jax.config import Rows, UltraFeedback
from fssa_jax.data.conversations import prompt_is_implicit
from fssa_jax.data.ratings import levels_of_ratings, rows_of_levels, rows_of_ratings
from fssa_jax.data.records import BadRecord, Record, read_records
from fssa_jax.data.rows import (
    ALLOWED,
    REQUIRED,
    Rated,
    Ratings,
    Row,
    RowReport,
    Schema,
    Ties,
    Undecided,
    is_missing,
    own_schema,
    parse_rating,
    parse_record,
    schema_of,
)
from fssa_jax.data.schemas import crowd_rows, ultrafeedback_rows
from fssa_jax.errors import UserError
from fssa_jax.progress import doing

_LABELS = ("helpfulness", "honesty")  # default labels of UltraFeedback


def read_source(data: Rows) -> tuple[list[Row], dict]:
    """Rows, in the schema of the first record, and a report of what was read and left out."""
    schema = schema_of(next((r.values for r in read_records(data.path) if isinstance(r, Record)), None))
    if schema in REQUIRED:
        rows, reading = read_rows_of(data)
        return rows, {"schema": schema, **dataclasses.asdict(reading)}
    reading = RowReport()
    records = read_records(data.path)
    if schema == "ultrafeedback":
        ours = as_ultrafeedback(data)
        rows, made = ultrafeedback_rows(records, ours.labels, ours.conflicting, data.split_seed, reading, data.on_error)
    else:
        rows, made = crowd_rows(records, data.split_seed, reading, data.on_error)
    return rows, {"schema": schema, "skipped": reading.skipped, **dataclasses.asdict(made)}


def read_rows_of(data: Rows, levels: Sequence[float] = ()) -> tuple[list[Row], RowReport]:
    """`read_rows` with the settings of a configuration, and levels of ratings if those of a trained model are given."""
    return read_rows(
        data.path,
        data.on_error,
        ties=data.ties,
        ratings=data.ratings,
        levels=levels,
        gap=data.rating_gap,
        most=data.max_rows,
        seed=data.split_seed,
    )


def read_rows(
    path: str,
    on_error: str = "raise",
    person: str = "",
    *,
    ties: Ties = "drop",
    ratings: Ratings = "pairs",
    levels: Sequence[float] = (),
    gap: float = 0.0,
    most: int = 64,
    seed: int = 0,
) -> tuple[list[Row], RowReport]:
    """Reads and checks the rows of a file, directory or hub name; duplicates are kept once and counted.

    Args:
      path: the source.
      on_error: "raise", or "skip" to list bad rows in the report.
      person: user_id of rows that lack one; "" if every row must name its user.
      ties: "drop" counts ties and leaves them out; "half" keeps a tie as two choices, one each way, of weight ½.
      ratings: "pairs" makes choices between two rated responses, in a file of ratings alone; "levels" makes choices
        between a response and thresholds, in any file.
      levels: of the ratings, if they are levels of a trained model; otherwise those of `levels_of_ratings`.
      gap, most, seed: of ratings as pairs; see `rows_of_ratings`.

    Raises:
      UserError: the source cannot be read, a bad row (with on_error "raise"), or no usable row is left.
    """
    report = RowReport(levels=list(levels))
    schema: Schema | None = None
    rows: list[Row] = []
    rated: list[Rated] = []
    with doing(f"reading {path}", unit="rows") as work:
        for record in read_records(path):
            report.read += 1
            work.add()
            values: Any = None
            try:
                if isinstance(record, BadRecord):
                    raise UserError(f"{record.place}: {record.reason}")
                values = record.values
                if person and isinstance(values, dict) and is_missing(values.get("user_id")):
                    values = {**values, "user_id": person}
                schema = schema or schema_of(values)
                own = own_schema(values, schema, ratings)
                if own == "ratings" and own != schema and ratings == "pairs":
                    raise UserError(
                        f"{record.place}: a rating among rows of other kinds; leave it out, or train with "
                        "--config.data.ratings=levels, which reads ratings next to them"
                    )
                if own == "ratings":
                    rated.append(parse_rating(values, record.place, record.split))
                else:
                    made = parse_record(values, record.place, record.split, own)
                    report.thumbs += own == "thumbs"
                    rows += made
                    report.implicit += prompt_is_implicit(values)
            except Undecided as found:
                tie = str(found) == "tie"
                if tie and ties == "half" and isinstance(record, Record):
                    rows += _both_ways(values, record, own_schema(values, schema or "choices", ratings))
                    report.halved += 1
                    continue
                report.ties += tie
                report.unanswered += not tie
                report.undecided.append(f"{record.place}: {found}")
            except UserError as error:
                if on_error == "raise":
                    raise
                report.skipped.append(str(error))
    if rated and ratings == "levels":
        report.levels = list(levels or levels_of_ratings(rated))
        rows += rows_of_levels(rated, report.levels)
    elif rated:
        rows = rows_of_ratings(rated, gap, most, seed)
        report.unpaired = len({one.user for one in rated} - {row.user for row in rows})
    rows = _once(rows, report, on_error)
    if not rows and report.undecided and not report.skipped:
        remedy = "give choices" if person else "give choices, or keep ties with --config.data.ties=half"
        raise UserError(
            f"{path}: no usable row ({report.undecided[0]}): all {len(report.undecided)} are ties or skipped; {remedy}"
        )
    if not rows:
        reasons = [*report.skipped[:1], *report.undecided[:1]]
        needed = ", ".join(name for name in REQUIRED.get(schema or "choices", ()) if not (person and name == "user_id"))
        detail = f" ({reasons[0]})" if reasons else ""
        raise UserError(f"{path}: no usable row{detail}; a row needs {needed}")
    return rows, report


def as_ultrafeedback(data: Rows) -> UltraFeedback:
    """Converts the settings to `UltraFeedback`, for rows that turn out to have its schema."""
    if not isinstance(data, UltraFeedback):
        data = UltraFeedback(**{field.name: getattr(data, field.name) for field in dataclasses.fields(data)})
    return dataclasses.replace(data, labels=data.labels or _LABELS)


def _both_ways(values: Mapping[str, Any], record: Record, schema: Schema) -> list[Row]:
    """A tie as two choices, one each way, which weigh as much as one choice together."""
    made = [parse_record({**values, "choice": choice}, record.place, record.split, schema) for choice in (0, 1)]
    return [dataclasses.replace(row, weight=0.5) for rows in made for row in rows]


def _once(rows: Iterable[Row], report: RowReport, on_error: str) -> list[Row]:
    """The rows without repetitions: a choice that is listed twice is not evidence twice."""
    first: dict[tuple, Row] = {}
    for row in rows:
        key = (row.user, row.prompt, row.chosen, frozenset(row.responses), row.situation, row.weight)
        before = first.setdefault(key, row)
        if before is row:
            continue
        report.duplicates += 1
        first[key] = dataclasses.replace(before, unfinished=before.unfinished | row.unfinished)
        differs = next((name for name in ALLOWED if getattr(before, name) != getattr(row, name)), None)
        if differs:
            message = (
                f"{row.place}: repeats {before.place}, but {differs!r} is {getattr(row, differs)!r} here and "
                f"{getattr(before, differs)!r} there; remove one of the two"
            )
            if on_error == "raise":
                raise UserError(message)
            report.skipped.append(message)
    return list(first.values())
