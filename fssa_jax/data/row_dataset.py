"""From checked rows of people's choices to a `Dataset`: users of each split, disjoint pools, tables, features."""

import dataclasses
import logging
from collections import Counter
from pathlib import Path

import numpy as np

from fssa_jax.config import Rows
from fssa_jax.config.fields import to_dict
from fssa_jax.data.dataset import SPLITS, Dataset, Split, featuriser_of_texts, make_table, number_texts, texts_of
from fssa_jax.data.features import EncoderFeaturiser, Text, find_vectors
from fssa_jax.data.featurise import features_of_rows
from fssa_jax.data.reading import as_ultrafeedback, read_source
from fssa_jax.data.records import source_digest
from fssa_jax.data.rows import Row, choice_texts
from fssa_jax.data.splits import disjoint_pools, split_users
from fssa_jax.data.thresholds import Threshold, ThresholdFeaturiser, is_threshold
from fssa_jax.errors import UserError

_log = logging.getLogger(__name__)

POOLS = ("context", "target")


def rows_dataset(data: Rows, rows: list[Row] | None = None, scratch: Path | None = None) -> Dataset:
    """Checks or creates splits and pools, numbers the texts, and computes the features."""
    report: dict = {"source": data.path, "skipped": [], "duplicates": 0}
    if rows is None:
        report["source_digest"] = digest_of_rows(data)
        rows, reading = read_source(data)
        report |= reading
        if report.get("schema") == "ultrafeedback":  # store the labels that were used
            data = as_ultrafeedback(data)
    rows, divided = with_source_splits(rows, data.split_seed)
    hold_out = data.hold_out_items or divided
    # Thresholds are after all texts: vectors and embeddings are of texts.
    ids = number_texts(sorted(dict.fromkeys(choice_texts(rows)), key=is_threshold))
    by_user = rows_by_user(rows)
    texts = [text for text in ids if not is_threshold(text)]
    thresholds = [text for text in ids if is_threshold(text)]
    split_of = _user_splits(data.path, by_user, data.split_seed)
    if hold_out:
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
        if hold_out and name == "train":
            kept = {user: [row for row in rows if row.split_item == "train"] for user, rows in mine.items()}
            dropped["of held-out items"] = sum(map(len, mine.values())) - sum(map(len, kept.values()))
            mine = kept
        splits[name] = rows_split(data, name, mine, ids, groups, rng, left_out, dropped)
    report |= {
        "settings": to_dict(dataclasses.replace(data, hold_out_items=hold_out)),
        "rows": len(rows),
        "users": {name: len(split.users) for name, split in splits.items()},
        "texts": len(texts),
        "left_out_users": left_out,
        "left_out_rows": dict(dropped),
    }
    featuriser, features = features_of_rows(data, texts, splits["train"], scratch)
    if isinstance(of_texts := featuriser_of_texts(featuriser), EncoderFeaturiser):
        report["cut_texts"] = of_texts.cut
    unfinished = frozenset(ids[row.prompt, response] for row in rows for response in row.unfinished)
    if not thresholds:
        return Dataset(texts, features, splits, groups, featuriser, report=report, unfinished=unfinished)
    known = texts_of(splits["train"].table)
    wider = ThresholdFeaturiser.of(featuriser, thresholds, features, known[known < len(texts)])
    features = wider.extended(features)
    return Dataset(texts + thresholds, features, splits, groups, wider, report=report, unfinished=unfinished)


def digest_of_rows(data: Rows) -> str:
    """The digest of the rows and of the vectors that go with them; "" if the rows cannot be read here."""
    vectors = (data.vectors, data.texts) if data.vectors else find_vectors(data.path)
    used = vectors if data.features in ("auto", "given") else ("", "")
    return source_digest(data.path, *(Path(file) for file in used if file))


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
    users, choices, weights, group = [], [], [], []
    for user, mine in sorted(by_user.items()):
        texts = _ids_of(mine, ids)
        pools = _user_pools(user, mine, texts, ids, rng, dropped)
        for p, of_pool in enumerate(pools):
            if len(of_pool) > data.max_rows:
                keep = rng.permutation(len(of_pool))[: data.max_rows]
                dropped["beyond max_rows"] += len(of_pool) - data.max_rows
                pools[p] = of_pool[keep]
        if len(pools[0]) < data.min_context or len(pools[1]) < data.min_targets:
            left_out.append(user)
            continue
        users.append(user)
        choices.append([texts[of_pool] for of_pool in pools])
        weights.append([np.array([mine[i].weight for i in of_pool], np.float32) for of_pool in pools])
        most = Counter(row.group for row in mine).most_common(1)[0][0]
        if most not in groups:  # a group that was not in training
            groups.append(most)
        group.append(groups.index(most))
    if not users:
        raise UserError(
            f"{data.path}: no {name} user with {data.min_context} context and {data.min_targets} target rows "
            f"({len(by_user)} users in this split); give more rows per user, or lower config.data.min_context"
        )
    return Split(users, make_table(choices, group, weights))


def with_source_splits(rows: list[Row], seed: int) -> tuple[list[Row], bool]:
    """Rows with the source's own splits as split_user, or else as split_item; and whether it is the latter.

    They are splits of people if nobody is in two of them. Then people for validation, or testing, are taken from those
    for training if the source has none. Otherwise they are splits of the rows of people: training uses the training
    rows alone. Rows in no split are for training.
    """
    if not any(row.split for row in rows) or any(row.split_user for row in rows):
        return rows, False
    rows = [row if row.split else dataclasses.replace(row, split="train") for row in rows]
    of_user: dict[str, set[str]] = {}
    for row in rows:
        of_user.setdefault(row.user, set()).add(row.split)
    if any(len(splits) > 1 for splits in of_user.values()):
        _log.info("the source splits the rows of people, not people: only its training rows are trained on")
        return [dataclasses.replace(row, split_item=row.split_item or row.split) for row in rows], True
    given = {user: next(iter(splits)) for user, splits in of_user.items()}
    missing = [name for name in ("val", "test") if name not in given.values()]
    training = [user for user, split in given.items() if split == "train"]
    if missing and len(training) > len(missing):
        hashed = split_users(training, seed)
        given |= {user: split for user, split in hashed.items() if split in missing}
    counts = Counter(given.values())
    _log.info("people are split as in the source: %s", ", ".join(f"{counts[n]} {n}" for n in SPLITS))
    return [dataclasses.replace(row, split_user=given[row.user]) for row in rows], False


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


def _ids_of(mine: list[Row], ids: dict[Text, int]) -> np.ndarray:
    """Ids of the responses of rows, (rows, 2 + a), the chosen one first, −1 for none."""
    texts = np.full((len(mine), max((len(row.responses) for row in mine), default=2)), -1, np.int32)
    for i, row in enumerate(mine):
        texts[i, : len(row.responses)] = [ids[text] for text in row.texts]
    return texts


def _without_thresholds(mine: list[Row], texts: np.ndarray) -> np.ndarray:
    """`_ids_of` with the text itself in the place of the threshold: a threshold connects no texts."""
    real = texts.copy()
    for i, row in enumerate(mine):
        if row.alone:
            real[i, :2] = texts[i, 1 if isinstance(row.chosen, Threshold) else 0]
    return real


def _user_pools(
    user: str, mine: list[Row], texts: np.ndarray, ids: dict[Text, int], rng: np.random.Generator, dropped: Counter
) -> list[np.ndarray]:
    """Numbers of the rows in the context pool and in the target pool.

    Pools share no text. Where texts repeat by design and rows name their situation, pools share no situation instead.
    """
    texts = _without_thresholds(mine, texts)
    named, situations = [row.pool for row in mine], [row.situation for row in mine]
    for column, values in (("pool", named), ("situation", situations)):
        if any(values) and not all(values):
            row = mine[values.index("")]
            raise UserError(
                f"{row.place}: user {user!r} has no {column} here, but has one in other rows; fill in {column!r}"
            )
    if not any(named):
        if any(situations):
            number = {name: i for i, name in enumerate(dict.fromkeys(situations))}
            half = rng.permutation(len(number)) % 2
            pool = np.array([half[number[name]] for name in situations], int)
        else:
            pool = disjoint_pools(texts, rng) if mine else np.zeros(0, int)
        dropped["texts in both pools"] += int((pool < 0).sum())
    else:
        pool = np.array([POOLS.index(name) for name in named])
        of_pool = [{name for name, q in zip(situations, pool, strict=True) if name and q == p} for p in (0, 1)]
        shared = min(of_pool[0] & of_pool[1], default=None)
        if shared is not None:
            row = mine[situations.index(shared)]
            raise UserError(
                f"{row.place}: situation {shared[:60]!r} is in both pools of user {user!r}; give it one pool"
            )
        both = np.setdiff1d(np.intersect1d(texts[pool == 0], texts[pool == 1]), -1)
        if len(both) and not any(situations):
            where = next(row for row, of_row in zip(mine, texts, strict=True) if both[0] in of_row)
            text = next(response for prompt, response in where.texts if ids[prompt, response] == both[0])
            raise UserError(
                f"{where.place}: text {text[:60]!r} is in both pools of user {user!r}; leave out 'pool' to have "
                "disjoint pools made, or name the 'situation' of every row if texts repeat by design"
            )
    return [np.flatnonzero(pool == p) for p in (0, 1)]
