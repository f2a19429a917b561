"""Builds the data set of a configuration: prepared, from rows, or a built-in benchmark."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fssa_jax.config import Chat, Data, Rows, Styles, Synthetic
from fssa_jax.config.fields import flat, to_dict
from fssa_jax.data import dataset as datasets
from fssa_jax.data.benchmarks import chat, styles, synthetic
from fssa_jax.data.dataset import SPLITS, Dataset, Split, Truth, arrays_of, make_table
from fssa_jax.data.features import NumberFeaturiser, Text
from fssa_jax.data.featurise import features_of_texts
from fssa_jax.data.row_dataset import digest_of_rows, rows_dataset
from fssa_jax.errors import UserError
from fssa_jax.types import ChoiceTable


def load_dataset(data: Data, context: int, targets: int, scratch: Path | None = None) -> Dataset:
    """Reads a prepared directory, or builds the data set of the settings.

    Args:
      data: the settings.
      context, targets: choices per person that a benchmark draws; ignored for rows.
      scratch: a directory for embeddings, so that a killed run can resume.
    """
    if isinstance(data, Styles):
        return styles_dataset(data, context, targets, scratch)
    if isinstance(data, Chat):
        return chat_dataset(data, context, targets, scratch)
    if isinstance(data, Synthetic):
        return synthetic_dataset(data, context, targets)
    if not data.path:
        raise UserError("config.data.path: name a file of rows, for example --config.data.path=rows.jsonl")
    directory = _prepared(data.path)
    if directory is not None:
        prepared = datasets.load(directory)
        _refuse_other_settings(data, prepared.report)
        prepared.report["source_digest"] = digest_of(data)
        return only_groups(prepared, data.groups)
    return only_groups(rows_dataset(data, scratch=scratch), data.groups)


def _prepared(path: str) -> Path | None:
    """The prepared directory that a path names: itself, or the data of a work directory; None for rows."""
    return next((d for d in (Path(path), Path(path) / "data") if datasets.is_prepared(d)), None)


def digest_of(data: Data) -> str:
    """The digest of a source of data, by which a change is noticed; "" if it cannot be read here."""
    if not isinstance(data, Rows) or not data.path:
        return ""
    directory = _prepared(data.path)
    return datasets.digest(directory) if directory is not None else digest_of_rows(data)


def only_groups(dataset: Dataset, groups: Sequence[str]) -> Dataset:
    """Restricts a data set to the users of these groups; all users if none are named.

    Raises:
      UserError: a group without users.
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
            raise UserError(f"config.data.groups: no {name} user is in {', '.join(groups)}")
        table = ChoiceTable(**{key: value[keep] for key, value in arrays_of(split.table).items()})
        splits[name] = Split([split.users[i] for i in keep], table)
    return dataclasses.replace(dataset, splits=splits)


def _refuse_other_settings(data: Rows, report: dict[str, Any]) -> None:
    """Raises `UserError` for a given setting that differs from the one that the rows were prepared with."""
    prepared = flat(report.get("settings", {}))
    if report.get("schema") != "ultrafeedback":  # these settings do not apply to other rows
        prepared = {key: value for key, value in prepared.items() if key not in ("labels", "conflicting")}
    default = flat(to_dict(type(data)()))
    for name, given in flat(to_dict(data)).items():
        before = prepared.get(name, given)
        if name not in ("path", "groups") and given != before and given != default[name]:  # a default was not asked for
            raise UserError(
                f"{data.path}: prepared with config.data.{name}={before!r}, not {given!r}; "
                f"run launch.prepare_data with --config.data.{name}={given}"
            )


def styles_dataset(data: Styles, context: int, targets: int, scratch: Path | None = None) -> Dataset:
    """The `styles` benchmark: train_users for training, eval_users each for validation and testing.

    In the held-out splits users 2i and 2i + 1 have opposite weights and share their targets. Features are tfidf unless
    the settings ask for an encoder.

    Raises:
      UserError: the settings ask for given vectors, or the encoder cannot be loaded.
    """
    if data.features == "given":
        raise UserError("config.data.features: styles makes its own texts; give tfidf or encoder")
    rng = np.random.default_rng(data.split_seed)
    texts, style_of, prompt_of = styles.texts()
    weights, log_prior = styles.PEOPLE.every()
    number = {tuple(w): i for i, w in enumerate(weights.tolist())}
    prompts = styles.prompt_splits()
    splits = {}
    for name in SPLITS:
        count = data.train_users if name == "train" else data.eval_users
        mine = weights[rng.choice(len(weights), count, p=np.exp(log_prior) / np.exp(log_prior).sum())]
        # Context and targets share no prompt, hence no text.
        context_prompts, target_prompts = np.array_split(rng.permutation(prompts[name]), 2)
        shown = styles.draw_pairs(rng, context_prompts, prompt_of, (count, max(context, 1)))
        asked = styles.draw_pairs(rng, target_prompts, prompt_of, (count, targets))
        if name != "train":
            mine[1::2] = -mine[0::2][: count // 2]
            asked[1::2] = asked[0::2][: count // 2]
        pools = [styles.PEOPLE.choose(rng, mine, pairs, style_of) for pairs in (shown, asked)]
        person = [number[tuple(w)] for w in (mine + 0.0).tolist()]
        choices = [[np.stack([pools[p][0][u], pools[p][1][u]], -1) for p in (0, 1)] for u in range(count)]
        users = [f"{name}-{u}: {styles.PEOPLE.name(weights[i])}" for u, i in enumerate(person)]
        splits[name] = Split(users, make_table(choices, person))
    known = np.flatnonzero(np.isin(prompt_of, prompts["train"]))
    featuriser, features = features_of_texts(data, data.features == "encoder", texts, known, scratch)
    rewards = styles.PEOPLE.rewards(style_of, weights)
    names = [styles.PEOPLE.name(w) for w in weights]
    report = {"source": "styles", "users": {n: len(s.users) for n, s in splits.items()}, "texts": len(texts)}
    return Dataset(texts, features, splits, names, featuriser, Truth(rewards, log_prior), report)


def chat_dataset(data: Chat, context: int, targets: int, scratch: Path | None = None) -> Dataset:
    """The `chat` benchmark: train_users for training, eval_users each for validation and testing.

    In the held-out splits users 2i and 2i + 1 have opposite weights and share their targets. Features are tfidf and
    manner unless the settings say otherwise.

    Raises:
      UserError: the settings ask for given vectors, or the encoder cannot be loaded.
    """
    if data.features == "given":
        raise UserError("config.data.features: chat has its own texts; give tfidf or encoder")
    rng = np.random.default_rng(data.split_seed)
    known = chat.chat_texts()
    found, people = known.found, chat.PEOPLE
    weights, log_prior = people.every()
    number = {tuple(w): i for i, w in enumerate(weights.tolist())}
    splits = {}
    for name in SPLITS:
        count = data.train_users if name == "train" else data.eval_users
        mine = weights[rng.choice(len(weights), count, p=np.exp(log_prior) / np.exp(log_prior).sum())]
        # Context and targets of a person share no prompt. In training every person has prompts of their own; held-out
        # people share the two halves, because the controls give them one another's contexts.
        halves = np.array_split(rng.permutation(known.splits[name]), 2)
        pools = []
        if name == "train":
            cut = len(halves[0])
            order = rng.permuted(np.tile(known.splits[name], (count, 1)), axis=1)
            halves = [order[:, :cut], order[:, cut:]]
        for half, rows in zip(halves, (max(context, 1), targets), strict=True):
            asked = (
                half if half.ndim == 1 else np.take_along_axis(half, rng.integers(0, half.shape[1], (count, rows)), 1)
            )
            pools.append(chat.draw_pairs(rng, asked, (count, rows), known.prompt, found))
        if name != "train":
            mine[1::2] = -mine[0::2][: count // 2]
            pools[1][1::2] = pools[1][0::2][: count // 2]
        chosen = [people.choose(rng, mine, pairs, found) for pairs in pools]
        person = [number[tuple(w)] for w in (mine + 0.0).tolist()]
        choices = [[np.stack([chosen[p][0][u], chosen[p][1][u]], -1) for p in (0, 1)] for u in range(count)]
        users = [f"{name}-{u}: {people.name(weights[i])}" for u, i in enumerate(person)]
        splits[name] = Split(users, make_table(choices, person))
    trained = np.flatnonzero(np.isin(known.prompt, known.splits["train"]))
    featuriser, features = features_of_texts(data, data.features == "encoder", known.texts, trained, scratch)
    truth = Truth(people.rewards(found, weights), log_prior)
    report = {"source": "chat", "users": {n: len(s.users) for n, s in splits.items()}, "texts": len(known.texts)}
    unfinished = frozenset(np.flatnonzero(known.unfinished).tolist())
    names = [people.name(w) for w in weights]
    return Dataset(known.texts, features, splits, names, featuriser, truth, report, unfinished)


def synthetic_dataset(data: Synthetic, context: int, targets: int) -> Dataset:
    """The task with two kinds of user. Training draws fresh episodes; the train split is only a sample."""
    rng = np.random.default_rng(data.split_seed)
    values: list[np.ndarray] = []
    splits = {}
    first_id = 0
    for name in SPLITS:
        count = data.train_users if name == "train" else data.eval_users
        args = (count, max(context, 1), targets, first_id)
        if data.published:
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
    report = {"source": "synthetic", "users": {n: len(s.users) for n, s in splits.items()}, "texts": len(texts)}
    return Dataset(texts, features, splits, list(synthetic.KINDS), NumberFeaturiser(), truth, report)
