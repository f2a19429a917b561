"""From checked rows of people's choices to a `Dataset`: users of each split, disjoint pools, tables, features."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fssa_jax.config import Rows, UltraFeedback
from fssa_jax.config.fields import to_dict
from fssa_jax.data.dataset import SPLITS, Dataset, Split, make_table, number_texts
from fssa_jax.data.features import EncoderFeaturiser, Text
from fssa_jax.data.featurise import features_of_rows
from fssa_jax.data.rows import Row, RowReport, read_records, read_rows
from fssa_jax.data.schemas import conversation_rows, schema_of, ultrafeedback_rows
from fssa_jax.data.splits import disjoint_pools, split_users
from fssa_jax.errors import UserError

POOLS = ("context", "target")
_LABELS = ("helpfulness", "honesty")  # default labels of UltraFeedback


def read_source(data: Rows) -> tuple[list[Row], dict]:
    """Rows, in the schema of the first record, and a report of what was read and left out."""
    first = next(iter(read_records(data.path, ())), ("", None))[1]
    schema = schema_of(first)
    if schema == "rows":
        rows, reading = read_rows(data.path, data.on_error)
        return rows, {"read": reading.read, "duplicates": reading.duplicates, "skipped": reading.skipped}
    reading = RowReport()
    records = read_records(data.path, (), reading, data.on_error)
    if schema == "ultrafeedback":
        ours = as_ultrafeedback(data)
        rows, made = ultrafeedback_rows(records, ours.labels, ours.conflicting, data.split_seed, reading, data.on_error)
    else:
        rows, made = conversation_rows(records, data.split_seed, reading, data.on_error)
    return rows, {"schema": schema, "skipped": reading.skipped, **dataclasses.asdict(made)}


def rows_dataset(data: Rows, rows: list[Row] | None = None, scratch: Path | None = None) -> Dataset:
    """Checks or creates splits and pools, numbers the texts, and computes the features."""
    report: dict = {"source": data.path, "skipped": [], "duplicates": 0}
    if rows is None:
        rows, reading = read_source(data)
        report |= reading
        if report.get("schema") == "ultrafeedback":  # store the labels that were used
            data = as_ultrafeedback(data)
    ids = number_texts(texts_in(rows))
    by_user = rows_by_user(rows)
    texts = list(ids)
    split_of = _user_splits(data.path, by_user, data.split_seed)
    if data.hold_out_items:
        without = next((row for row in rows if not row.split_item), None)
        if without is not None:
            raise UserError(f"{without.place}: config.data.hold_out_items needs 'split_item' in every row; fill it in")
    groups = sorted({row.group for row in rows})
    rng = np.random.default_rng(data.split_seed)
    left_out: list[str] = []
    dropped: Counter[str] = Counter()
    splits = {}
    for name in SPLITS:
        mine = {user: rows for user, rows in by_user.items() if split_of[user] == name}
        if data.hold_out_items and name == "train":
            kept = {user: [row for row in rows if row.split_item == "train"] for user, rows in mine.items()}
            dropped["of held-out items"] = sum(map(len, mine.values())) - sum(map(len, kept.values()))
            mine = kept
        splits[name] = rows_split(data, name, mine, ids, groups, rng, left_out, dropped)
    report |= {
        "settings": to_dict(data),
        "rows": len(rows),
        "users": {name: len(split.users) for name, split in splits.items()},
        "texts": len(texts),
        "left_out_users": left_out,
        "left_out_rows": dict(dropped),
    }
    featuriser, features = features_of_rows(data, texts, splits["train"], scratch)
    if isinstance(featuriser, EncoderFeaturiser):
        report["cut_texts"] = featuriser.cut
    return Dataset(texts, features, splits, groups, featuriser, report=report)


def texts_in(rows: list[Row]) -> Iterator[Text]:
    """(prompt, response) of both responses of every row, the chosen one first."""
    return ((row.prompt, response) for row in rows for response in (row.chosen, row.rejected))


def rows_by_user(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows of each user; users are in the order of their first row."""
    by_user: dict[str, list[Row]] = {}
    for row in rows:
        by_user.setdefault(row.user, []).append(row)
    return by_user


def rows_split(
    data: Rows,
    name: str,
    by_user: dict[str, list[Row]],
    ids: dict[Text, int],
    groups: list[str],
    rng: np.random.Generator,
    left_out: list[str],
    dropped: Counter[str],
) -> Split:
    """The users of one split who have enough rows; others are added to `left_out`, and dropped rows to `dropped`.

    Raises:
      UserError: no user has enough rows.
    """
    users, choices, group = [], [], []
    for user, mine in sorted(by_user.items()):
        pools = _user_pools(user, mine, ids, rng, dropped)
        for p, (a, b) in enumerate(pools):
            if len(a) > data.max_rows:
                keep = rng.permutation(len(a))[: data.max_rows]
                dropped["beyond max_rows"] += len(a) - data.max_rows
                pools[p] = (a[keep], b[keep])
        if len(pools[0][0]) < data.min_context or len(pools[1][0]) < data.min_targets:
            left_out.append(user)
            continue
        users.append(user)
        choices.append(pools)
        most = Counter(row.group for row in mine).most_common(1)[0][0]
        if most not in groups:  # a group that was not in training
            groups.append(most)
        group.append(groups.index(most))
    if not users:
        raise UserError(
            f"{data.path}: no {name} user with {data.min_context} context and {data.min_targets} target rows "
            f"({len(by_user)} users in this split); give more rows per user, or lower config.data.min_context"
        )
    return Split(users, make_table(choices, group))


def _user_splits(path: str, by_user: dict[str, list[Row]], seed: int) -> dict[str, str]:
    """The split of each user: from the rows, or by hash if the rows give none."""
    given: dict[str, str] = {}
    for user, mine in by_user.items():
        named = {row.split_user for row in mine}
        if len(named) > 1:
            places = ", ".join(next(r.place for r in mine if r.split_user == s) for s in sorted(named))
            raise UserError(
                f"{places}: user {user!r} is in two splits ({', '.join(sorted(s or 'none' for s in named))}); "
                "give every row of a user the same split_user"
            )
        given[user] = named.pop()
    if not any(given.values()):
        if len(by_user) < 3:
            raise UserError(
                f"{path}: rows of {len(by_user)} people; training, validation and test need at least one each, "
                "and learning how people differ needs many"
            )
        return split_users(list(by_user), seed)
    without = next((user for user, split in given.items() if not split), None)
    if without is not None:
        raise UserError(f"{by_user[without][0].place}: user {without!r} has no split_user, but others have")
    return given


def _user_pools(
    user: str, mine: list[Row], ids: dict[Text, int], rng: np.random.Generator, dropped: Counter
) -> list[tuple[np.ndarray, np.ndarray]]:
    """[(chosen, rejected) of the context pool, (chosen, rejected) of the target pool] as ids of texts."""
    chosen = np.array([ids[row.prompt, row.chosen] for row in mine], np.int32)
    rejected = np.array([ids[row.prompt, row.rejected] for row in mine], np.int32)
    named = [row.pool for row in mine]
    if not any(named):
        pool = disjoint_pools(chosen, rejected, rng) if mine else np.zeros(0, int)
        dropped["texts in both pools"] += int((pool < 0).sum())
    else:
        if not all(named):
            row = mine[named.index("")]
            raise UserError(f"{row.place}: user {user!r} has no pool here, but has one in other rows; fill in 'pool'")
        pool = np.array([POOLS.index(name) for name in named])
        texts = [np.concatenate([chosen[pool == p], rejected[pool == p]]) for p in (0, 1)]
        both = np.intersect1d(texts[0], texts[1])
        if len(both):
            where = next(r for r, a, b in zip(mine, chosen, rejected, strict=True) if both[0] in (a, b))
            text = where.chosen if ids[where.prompt, where.chosen] == both[0] else where.rejected
            raise UserError(
                f"{where.place}: text {text[:60]!r} is in both pools of user {user!r}; "
                "leave out 'pool' to have disjoint pools made"
            )
    return [(chosen[pool == p], rejected[pool == p]) for p in (0, 1)]


def as_ultrafeedback(data: Rows) -> UltraFeedback:
    """Converts the settings to `UltraFeedback`, for rows that turn out to have its schema."""
    if not isinstance(data, UltraFeedback):
        data = UltraFeedback(**{field.name: getattr(data, field.name) for field in dataclasses.fields(data)})
    return dataclasses.replace(data, labels=data.labels or _LABELS)
