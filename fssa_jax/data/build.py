"""From checked rows, or from a benchmark's own generator, to a `Dataset`."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fssa_jax.config.reward import Config, DataConfig
from fssa_jax.data import dataset as datasets
from fssa_jax.data.benchmarks import styles, synthetic
from fssa_jax.data.dataset import SPLITS, Dataset, Split, Truth, make_table, number_texts, texts_of
from fssa_jax.data.features import EncoderFeaturiser, Featuriser, Text, TfidfFeaturiser, read_vectors, vectors_beside
from fssa_jax.data.rows import Row, RowReport, read_records, read_rows
from fssa_jax.data.schemas import conversation_rows, schema_of, ultrafeedback_rows
from fssa_jax.data.splits import disjoint_pools, split_users
from fssa_jax.errors import UserError
from fssa_jax.lm.hub import at_hand
from fssa_jax.lm.text_encoder import EmbedSettings
from fssa_jax.types import ChoiceTable

POOLS = ("context", "target")
_LABELS = ("helpfulness", "honesty")  # of UltraFeedback, where none are named
# Settings that a prepared directory fixes.
_ROW_SETTINGS = (
    *("on_error", "labels", "conflicting", "features", "vectors", "texts", "components", "encoder", "encoder_pool"),
    *("encoder_layer", "encoder_tokens", "encoder_dtype", "encoder_attention", "encoder_normalise"),
    *("min_context", "min_targets", "max_rows", "hold_out_items", "split_seed"),
)


def load_dataset(config: Config, scratch: Path | None = None) -> Dataset:
    """The data set that the configuration names. Prepared directories are read, all else is built.

    Embedding many texts takes long: with `scratch`, a directory, a killed run is gone on with.
    """
    data = config.data
    if data.source == "styles":
        return styles_dataset(data, max(config.evaluate.k), config.train.targets, scratch)
    if data.source in synthetic.SOURCES:
        return synthetic_dataset(data, context=max(config.evaluate.k), targets=config.train.targets)
    if not data.path:
        raise UserError("config.data.path: name a file of rows, for example --config.data.path=rows.jsonl")
    if datasets.is_prepared(Path(data.path)):
        prepared = datasets.load(Path(data.path))
        _refuse_other_settings(data, prepared.report)
        return only_groups(prepared, data.groups)
    return only_groups(rows_dataset(data, scratch=scratch), data.groups)


def _row_settings(data: DataConfig) -> dict:
    """As JSON keeps them."""
    values = {name: getattr(data, name) for name in _ROW_SETTINGS}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def only_groups(dataset: Dataset, groups: Sequence[str]) -> Dataset:
    """The data set with the users of these groups alone; all of them if none are named.

    Raises:
      UserError: a group that has no users.
    """
    if not groups:
        return dataset
    unknown = [name for name in groups if name not in dataset.groups]
    if unknown:
        raise UserError(f"config.data.groups: no group {unknown[0]!r}; there are {', '.join(dataset.groups)}")
    wanted = [dataset.groups.index(name) for name in groups]
    splits = {}
    for name, split in dataset.splits.items():
        keep = np.flatnonzero(np.isin(np.asarray(split.table.group), wanted))
        if not len(keep):
            raise UserError(f"config.data.groups: no {name} user is of {', '.join(groups)}")
        table = ChoiceTable(
            **{f.name: np.asarray(getattr(split.table, f.name))[keep] for f in dataclasses.fields(ChoiceTable)}
        )
        splits[name] = Split([split.users[i] for i in keep], table)
    return dataclasses.replace(dataset, splits=splits)


def _refuse_other_settings(data: DataConfig, report: dict) -> None:
    """Raises `UserError` for a setting of the rows that is given, but was another when they were prepared."""
    prepared = dict(report.get("settings", {}))
    if report.get("schema") != "ultrafeedback":  # these say nothing of other rows
        prepared = {k: v for k, v in prepared.items() if k not in ("labels", "conflicting")}
    default = _row_settings(DataConfig())
    for name, given in _row_settings(data).items():
        before = prepared.get(name, given)
        if given != before and given != default[name]:  # a default is no wish
            raise UserError(
                f"{data.path}: prepared with config.data.{name}={prepared[name]!r}, not {given!r}; "
                f"run launch.prepare_data with --config.data.{name}={given}"
            )


def read_source(data: DataConfig) -> tuple[list[Row], dict]:
    """Rows of whatever schema the first record has, and what was read and left out."""
    first = next(iter(read_records(data.path, ())), ("", None))[1]
    schema = schema_of(first)
    if schema == "rows":
        rows, reading = read_rows(data.path, data.on_error)
        return rows, {"read": reading.read, "duplicates": reading.duplicates, "skipped": reading.skipped}
    reading = RowReport()
    records = read_records(data.path, (), reading, data.on_error)
    if schema == "ultrafeedback":
        labels = data.labels or _LABELS
        rows, made = ultrafeedback_rows(records, labels, data.conflicting, data.split_seed, reading, data.on_error)
    else:
        rows, made = conversation_rows(records, data.split_seed, reading, data.on_error)
    return rows, {"schema": schema, "skipped": reading.skipped, **dataclasses.asdict(made)}


def rows_dataset(data: DataConfig, rows: list[Row] | None = None, scratch: Path | None = None) -> Dataset:
    """Checks splits and pools, or makes them; numbers the texts; computes the features."""
    report: dict = {"source": data.path, "skipped": [], "duplicates": 0}
    if rows is None:
        rows, reading = read_source(data)
        report |= reading
        if report.get("schema") == "ultrafeedback":  # what was read is what is remembered
            data = dataclasses.replace(data, labels=data.labels or _LABELS)
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
        "settings": _row_settings(data),
        "rows": len(rows),
        "users": {name: len(split.users) for name, split in splits.items()},
        "texts": len(texts),
        "left_out_users": left_out,
        "left_out_rows": dict(dropped),
    }
    featuriser, features = _features(data, texts, splits["train"], scratch)
    if isinstance(featuriser, EncoderFeaturiser):
        report["cut_texts"] = featuriser.cut
    return Dataset(texts, features, splits, groups, featuriser, report=report)


def texts_in(rows: list[Row]) -> Iterator[Text]:
    """(prompt, response) of every row, the chosen one first."""
    return ((row.prompt, response) for row in rows for response in (row.chosen, row.rejected))


def rows_by_user(rows: list[Row]) -> dict[str, list[Row]]:
    """The rows of each user, users in the order of their first row."""
    by_user: dict[str, list[Row]] = {}
    for row in rows:
        by_user.setdefault(row.user, []).append(row)
    return by_user


def rows_split(
    data: DataConfig,
    name: str,
    by_user: dict[str, list[Row]],
    ids: dict[Text, int],
    groups: list[str],
    rng: np.random.Generator,
    left_out: list[str],
    dropped: Counter[str],
) -> Split:
    """The users of one split who have enough rows; who and what is left out is added to the two counts.

    Raises:
      UserError: nobody has enough rows.
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
        if most not in groups:  # a group that came after training
            groups.append(most)
        group.append(groups.index(most))
    if not users:
        raise UserError(
            f"{data.path}: no {name} user with {data.min_context} context and {data.min_targets} target rows "
            f"({len(by_user)} users in this split); give more rows a user, or lower config.data.min_context"
        )
    return Split(users, make_table(choices, group))


def _user_splits(path: str, by_user: dict[str, list[Row]], seed: int) -> dict[str, str]:
    """The splits that the rows give, or made by hash where they give none."""
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
                f"{path}: rows of {len(by_user)} people; training, validation and test need one each at least, "
                "and learning what people differ in needs many"
            )
        return split_users(list(by_user), seed)
    without = next((user for user, split in given.items() if not split), None)
    if without is not None:
        raise UserError(f"{by_user[without][0].place}: user {without!r} has no split_user, but others have")
    return given


def _user_pools(
    user: str, mine: list[Row], ids: dict[Text, int], rng: np.random.Generator, dropped: Counter
) -> list[tuple[np.ndarray, np.ndarray]]:
    """[(chosen, rejected) of the context pool, of the target pool] as ids of texts."""
    chosen = np.array([ids[row.prompt, row.chosen] for row in mine], np.int32)
    rejected = np.array([ids[row.prompt, row.rejected] for row in mine], np.int32)
    named = [row.pool for row in mine]
    if not any(named):
        pool = disjoint_pools(chosen, rejected, rng) if mine else np.zeros(0, int)
        dropped["texts in both pools"] += int((pool < 0).sum())
    else:
        if not all(named):
            row = mine[named.index("")]
            raise UserError(f"{row.place}: user {user!r} has no pool here, but has in other rows; fill in 'pool'")
        pool = np.array([POOLS.index(name) for name in named])
        texts = [np.concatenate([chosen[pool == p], rejected[pool == p]]) for p in (0, 1)]
        both = np.intersect1d(texts[0], texts[1])
        if len(both):
            where = next(r for r, a, b in zip(mine, chosen, rejected, strict=True) if both[0] in (a, b))
            text = where.chosen if ids[where.prompt, where.chosen] == both[0] else where.rejected
            raise UserError(
                f"{where.place}: text {text[:60]!r} is in both pools of user {user!r}; "
                "leave 'pool' out to have disjoint pools made"
            )
    return [(chosen[pool == p], rejected[pool == p]) for p in (0, 1)]


def _features(data: DataConfig, texts: list[Text], train: Split, scratch: Path | None) -> tuple[Featuriser, np.ndarray]:
    """Of rows: vectors that are given, or made of the texts."""
    vectors, order = data.vectors, data.texts
    if data.features in ("auto", "given") and not vectors:
        vectors, order = vectors_beside(data.path)
    if data.features == "given" and not vectors:
        raise UserError(f"{data.path}: no single .npy file beside it; name one with --config.data.vectors=FILE")
    if not vectors or data.features not in ("auto", "given"):
        encode = data.features == "encoder" or (data.features == "auto" and at_hand(data.encoder))
        return _features_of_texts(data, encode, texts, texts_of(train.table), scratch)
    featuriser = read_vectors(vectors, order, texts)
    return featuriser, _finite(featuriser.transform(texts), data.path)


def _features_of_texts(
    data: DataConfig, encode: bool, texts: list[Text], known: np.ndarray, scratch: Path | None
) -> tuple[Featuriser, np.ndarray]:
    """By a pretrained model or by tfidf; `known` are the rows of the training texts."""
    if not encode:
        featuriser: Featuriser = TfidfFeaturiser.fit([texts[i] for i in known], data.components)
        return featuriser, _finite(featuriser.transform(texts), data.path)
    names = ("pool", "layer", "tokens", "normalise", "dtype", "attention")
    values: dict[str, Any] = {name: getattr(data, f"encoder_{name}") for name in names}
    # A whole path: new texts may be embedded from elsewhere later.
    encoder = str(Path(data.encoder).resolve()) if Path(data.encoder).is_dir() else data.encoder
    featuriser = EncoderFeaturiser(EmbedSettings(encoder, max_tokens=values.pop("tokens"), **values))
    return featuriser, _finite(featuriser.fit_transform(texts, known, scratch), data.encoder)


def _finite(features: np.ndarray, source: str) -> np.ndarray:
    if not np.isfinite(features).all():
        raise UserError(f"{source}: features are not finite")
    return features


def styles_dataset(data: DataConfig, context: int, targets: int, scratch: Path | None = None) -> Dataset:
    """The `styles` benchmark: train_users to learn from, eval_users each to validate and to test.

    In the held-out splits users 2i and 2i + 1 want the opposite and see the same targets. Features are tfidf unless
    the settings ask for an encoder.

    Raises:
      UserError: given vectors are asked for, or the encoder cannot be had.
    """
    if data.features == "given" or data.vectors:
        raise UserError("config.data.features: styles makes its own texts; give tfidf or encoder")
    if data.hold_out_items:
        raise UserError(
            "config.data.hold_out_items: styles always holds topics out; leave it out (what its base reads "
            "is config.train.unread)"
        )
    rng = np.random.default_rng(data.split_seed)
    texts, style_of, prompt_of = styles.texts()
    weights, log_prior = styles.people()
    number = {tuple(w): i for i, w in enumerate(weights.tolist())}
    prompts = styles.prompt_splits()
    splits = {}
    for name in SPLITS:
        count = data.train_users if name == "train" else data.eval_users
        mine = weights[rng.choice(len(weights), count, p=np.exp(log_prior) / np.exp(log_prior).sum())]
        # Context and targets never share a prompt, hence no text.
        context_prompts, target_prompts = np.array_split(rng.permutation(prompts[name]), 2)
        shown = styles.draw_pairs(rng, context_prompts, prompt_of, (count, max(context, 1)))
        asked = styles.draw_pairs(rng, target_prompts, prompt_of, (count, targets))
        if name != "train":
            mine[1::2] = -mine[0::2][: count // 2]
            asked[1::2] = asked[0::2][: count // 2]
        pools = [styles.choose(rng, mine, pairs, style_of) for pairs in (shown, asked)]
        person = [number[tuple(w)] for w in (mine + 0.0).tolist()]
        choices = [[(pools[p][0][u], pools[p][1][u]) for p in (0, 1)] for u in range(count)]
        users = [f"{name}-{u}: {styles.person_name(weights[i])}" for u, i in enumerate(person)]
        splits[name] = Split(users, make_table(choices, person))
    known = np.flatnonzero(np.isin(prompt_of, prompts["train"]))
    featuriser, features = _features_of_texts(data, data.features == "encoder", texts, known, scratch)
    rewards = styles.SCALE * (style_of.astype(np.float32) - 0.5) @ weights.T
    names = [styles.person_name(w) for w in weights]
    report = {"source": "styles", "users": {n: len(s.users) for n, s in splits.items()}, "texts": len(texts)}
    return Dataset(texts, features, splits, names, featuriser, Truth(rewards, log_prior), report)


def synthetic_dataset(data: DataConfig, context: int, targets: int) -> Dataset:
    """The two-user task. Training draws its own episodes; the train split is a sample only."""
    rng = np.random.default_rng(data.split_seed)
    published = data.source == "synthetic_published"
    values: list[np.ndarray] = []
    splits = {}
    first_id = 0
    for name in SPLITS:
        count = data.train_users if name == "train" else data.eval_users
        args = (count, max(context, 1), targets, first_id)
        if published:
            y, table = synthetic.published_table(rng, synthetic.published_pairs(name), *args)
        else:
            y, table = synthetic.fresh_table(rng, *args)
        values.append(y)
        first_id += len(y)
        kinds = np.asarray(table.group)
        splits[name] = Split([f"{name}-{u}: kind {kinds[u]}" for u in range(count)], table)
    features = np.concatenate(values)
    texts: list[Text] = [("", f"{y:.6f}") for y in features[:, 0]]
    truth = Truth(synthetic.people_rewards(features).astype(np.float32), np.log(np.full(2, 0.5, np.float32)))
    report = {"source": data.source, "users": {n: len(s.users) for n, s in splits.items()}, "texts": len(texts)}
    return Dataset(texts, features, splits, list(synthetic.KINDS), synthetic.NumberFeaturiser(), truth, report)
