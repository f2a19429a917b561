"""Converts schemas without people to preference rows: UltraFeedback's ratings, and pairs that name nobody.

UltraFeedback has a few objectives, HH-RLHF and other pairs one crowd. Each objective or crowd is split into as many
users with a few dozen choices as its rows allow. Prompts, not pairs, are split into train, val and test, so no prompt
of a held-out user occurs in training. A division of the source's own is kept.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from math import isfinite
from typing import Any

import numpy as np

from fssa_jax.data.conversations import split_pair
from fssa_jax.data.records import BadRecord, Record
from fssa_jax.data.rows import Row, RowReport, unfinished_of
from fssa_jax.errors import UserError
from fssa_jax.lm.messages import readable
from fssa_jax.progress import each

ASPECTS = ("helpfulness", "honesty", "truthfulness", "instruction_following")
_ROWS_OF_A_USER = 60  # half of them context: enough for k = 10 and 20 targets, with some to choose from


@dataclasses.dataclass
class SchemaReport:
    """How many records were converted, and how many left out."""

    prompts: int = 0
    pairs: int = 0
    unrated: int = 0  # completions with a missing or "N/A" rating
    ambiguous: int = 0  # pairs with equal ratings in some label
    agreed: int = 0  # pairs left out to reach the conflicting share
    unreadable: int = 0  # pairs without a common prompt, or with an empty or the same response


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Two responses to a prompt, and per label whether the first is preferred."""

    prompt: str
    first: str
    second: str
    prefers_first: tuple[bool, ...]
    split: str = ""
    unfinished: frozenset[str] = frozenset()


def ultrafeedback_rows(
    records: Iterable[Record | BadRecord],
    labels: Sequence[str],
    conflicting: float = 1.0,
    seed: int = 0,
    reading: RowReport | None = None,
    on_error: str = "raise",
) -> tuple[list[Row], SchemaReport]:
    """All pairs of a prompt's completions; each label's ratings determine its choices.

    Pairs with equal ratings in any label are left out. `conflicting` is the share, among the kept pairs, of those that
    the labels disagree about: 1 keeps only these, as in the paper, 0.5 adds as many others.

    Args:
      records: with `instruction` and `completions` of `response` and `annotations`.
      labels: aspects that are rated, such as ("helpfulness", "honesty").
      conflicting: in (0, 1].
      seed: of the random choices of left-out pairs and of each user's rows.
      reading, on_error: with "skip", malformed records are left out and listed in `reading`.

    Raises:
      UserError: unknown labels, records of another schema, or no pair at all.
    """
    unknown = [label for label in labels if label not in ASPECTS]
    if unknown or not labels:
        raise UserError(f"config.data.labels: must be some of {', '.join(ASPECTS)}; got {', '.join(labels) or 'none'}")
    if not 0 < conflicting <= 1:
        raise UserError(f"config.data.conflicting: must be above 0 and at most 1, got {conflicting}")
    report = SchemaReport()
    at_odds, agreed = [], []
    for record in each(records, "reading", "records"):
        place, (prompt, completions) = record.place, _fields(record, "instruction", "completions")
        if not (isinstance(prompt, str) and isinstance(completions, list)):
            what = "needs 'instruction', a text, and 'completions', a list; is it UltraFeedback?"
            _bad(f"{place}: {what}", reading, on_error)
            continue
        report.prompts += 1
        rated = []
        for completion in completions:
            ratings = _ratings(completion, labels)
            if ratings is None:
                report.unrated += 1
            else:
                rated.append((str(completion["response"]), ratings))
        for (first, a), (second, b) in combinations(rated, 2):
            if first == second or any(x == y for x, y in zip(a, b, strict=True)):
                report.ambiguous += 1
                continue
            prefers = tuple(x > y for x, y in zip(a, b, strict=True))
            pair = _Pair(prompt, first, second, prefers, getattr(record, "split", ""))
            (at_odds if len(set(pair.prefers_first)) > 1 else agreed).append(pair)
    rng = np.random.default_rng(seed)
    if len(labels) > 1:
        wanted = min(round(len(at_odds) * (1 - conflicting) / conflicting), len(agreed))
        kept = sorted(rng.permutation(len(agreed))[:wanted])
        report.agreed = len(agreed) - wanted
        pairs = at_odds + [agreed[i] for i in kept]
    else:
        pairs = at_odds + agreed
    report.pairs = len(pairs)
    if not pairs:
        raise UserError("no pair is left that every label rates differently; give other --config.data.labels")
    return list(_rows(pairs, labels, rng, seed)), report


def _fields(record: Record | BadRecord, *names: str) -> tuple[Any, ...]:
    values = record.values if isinstance(record, Record) else None
    return tuple(values.get(name) for name in names) if isinstance(values, dict) else (None,) * len(names)


def _bad(message: str, reading: RowReport | None, on_error: str) -> None:
    """Raises `UserError` for a malformed record, or lists it."""
    if on_error == "raise" or reading is None:
        raise UserError(f"{message}; fix it, or skip such rows with --config.data.on_error=skip")
    reading.skipped.append(message)


def crowd_rows(
    records: Iterable[Record | BadRecord], seed: int = 0, reading: RowReport | None = None, on_error: str = "raise"
) -> tuple[list[Row], SchemaReport]:
    """Pairs `chosen` and `rejected` that name no people, in the forms of `split_pair`: one crowd of annotators.

    Raises:
      UserError: a record of another schema, or no usable record.
    """
    report = SchemaReport()
    pairs = []
    for record in each(records, "reading", "records"):
        prompt, chosen, rejected = _fields(record, "prompt", "chosen", "rejected")
        if not all(isinstance(side, str | list) for side in (chosen, rejected)):
            what = "'chosen' and 'rejected' must be texts of whole conversations, or lists of messages"
            _bad(f"{record.place}: {what}", reading, on_error)
            continue
        report.prompts += 1
        try:
            before, a, b = split_pair(prompt or None, chosen, rejected, record.place)
            a, b = a.strip(), b.strip()
            if a == b:
                raise UserError(f"{record.place}: the responses are identical")
        except UserError:
            report.unreadable += 1
            continue
        try:
            cut = unfinished_of(record.values if isinstance(record, Record) else {}, [a, b], record.place)
        except UserError as error:
            _bad(str(error), reading, on_error)
            continue
        pairs.append(_Pair(before, a, b, (True,), getattr(record, "split", ""), cut))
    report.pairs = len(pairs)
    if not pairs:
        raise UserError("no record whose two conversations share all but the last response")
    return list(_rows(pairs, ("annotators",), np.random.default_rng(seed), seed)), report


def _ratings(completion: Any, labels: Sequence[str]) -> tuple[float, ...] | None:
    """A completion's ratings by label; None if one is missing or "N/A", or if there is no response."""
    try:
        ratings = tuple(float(completion["annotations"][label]["Rating"]) for label in labels)
        good = (
            isinstance(completion["response"], str) and completion["response"].strip() and all(map(isfinite, ratings))
        )
        return ratings if good else None
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _split_of(prompt: str, seed: int) -> str:
    """80/10/10 by a hash of the prompt: the same in every process and for every set of labels."""
    place = int.from_bytes(hashlib.sha256(f"{seed}:{prompt}".encode()).digest()[:4], "big") / 2**32
    return "train" if place < 0.8 else "val" if place < 0.9 else "test"


def _given_splits(pairs: list[_Pair], seed: int) -> dict[str, str]:
    """The split of each prompt in a source that is divided: a prompt in several splits is held out.

    Without val, one in ten of the prompts for training is for validation; without test one in ten more for testing.
    """
    of_prompt: dict[str, str] = {}
    for pair in pairs:
        before = of_prompt.get(pair.prompt, "")
        of_prompt[pair.prompt] = max(before, pair.split, key=("", "train", "val", "test").index)
    if not any(of_prompt.values()):
        return {}
    missing = {"val", "test"} - set(of_prompt.values())
    for prompt, split in of_prompt.items():
        if split == "train" and (hashed := _split_of(prompt, seed)) in missing:
            of_prompt[prompt] = hashed
    return of_prompt


def _rows(pairs: list[_Pair], labels: Sequence[str], rng: np.random.Generator, seed: int) -> Iterator[Row]:
    """Rows of users: all labels share the same pairs, so that steering can be scored where labels disagree."""
    by_split: dict[str, dict[str, list[_Pair]]] = {"train": {}, "val": {}, "test": {}}
    given = _given_splits(pairs, seed)
    for pair in pairs:
        split = given.get(pair.prompt) or _split_of(pair.prompt, seed)
        by_split[split].setdefault(pair.prompt, []).append(pair)
    for split, by_prompt in by_split.items():
        prompts = list(by_prompt)
        users: list[list[tuple[str, _Pair]]] = [[]]
        for i in rng.permutation(len(prompts)):
            # All pairs of a prompt go into one pool of one user.
            group = by_prompt[prompts[i]]
            if len(users[-1]) + len(group) > _ROWS_OF_A_USER and users[-1]:
                users.append([])
            load = [sum(pool == name for pool, _ in users[-1]) for name in ("context", "target")]
            pool = "context" if load[0] <= load[1] else "target"
            users[-1] += [(pool, pair) for pair in group]
        for number, rows in enumerate(users):
            for j, label in enumerate(labels):
                for pool, pair in rows:
                    chosen, rejected = (pair.first, pair.second) if pair.prefers_first[j] else (pair.second, pair.first)
                    yield Row(
                        f"{label}-{split}-{number}",
                        pair.prompt,
                        chosen,
                        rejected,
                        unfinished=pair.unfinished,
                        group=label,
                        split_user=split,
                        split_item=split,
                        pool=pool,
                        place=f"{label} on {readable(pair.prompt)[:40]!r}",
                    )
