"""A prepared data set: texts, their features, and tables of choices, in memory and as a directory."""

import dataclasses
import json
import logging
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fssa_jax.data.features import (
    EncoderFeaturiser,
    Featuriser,
    GivenFeaturiser,
    NumberFeaturiser,
    Text,
    TfidfFeaturiser,
)
from fssa_jax.errors import UserError
from fssa_jax.files import whole_directory
from fssa_jax.lm.token_table import TokenTable
from fssa_jax.types import ChoiceTable

_log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
_FORMAT = 2


@dataclasses.dataclass
class Split:
    """The users of one split and their choices; row i of the table belongs to users[i]."""

    users: list[str]
    table: ChoiceTable


@dataclasses.dataclass
class Truth:
    """The ground truth of a built-in benchmark: every possible person's reward of every text, in nats."""

    rewards: np.ndarray  # (texts, people)
    log_prior: np.ndarray  # (people,)


@dataclasses.dataclass
class Dataset:
    """Everything that training and evaluation read. `report` lists what was left out, and why."""

    texts: list[Text]
    features: np.ndarray  # (texts, d) float32
    splits: dict[str, Split]
    groups: list[str]
    featuriser: Featuriser
    truth: Truth | None = None
    report: dict[str, Any] = dataclasses.field(default_factory=dict)
    trained_texts: int | None = None  # number of texts in training, if texts of other people were appended

    @property
    def known_texts(self) -> int:
        """Number of texts that can have a learnt embedding."""
        return len(self.texts) if self.trained_texts is None else self.trained_texts


def make_table(choices: list[list[tuple[np.ndarray, np.ndarray]]], group: list[int]) -> ChoiceTable:
    """Pads choices[user][pool] = (chosen ids, rejected ids) to a rectangle."""
    users = len(choices)
    rows = max((len(pool[0]) for user in choices for pool in user), default=1)
    chosen = np.zeros((users, 2, max(rows, 1)), np.int32)
    rejected = np.zeros_like(chosen)
    count = np.zeros((users, 2), np.int32)
    for u, user in enumerate(choices):
        for p, (a, b) in enumerate(user):
            chosen[u, p, : len(a)], rejected[u, p, : len(b)], count[u, p] = a, b, len(a)
    return ChoiceTable(chosen, rejected, count, np.asarray(group, np.int32).reshape(users))  # type: ignore[arg-type]


def texts_of(table: ChoiceTable, pool: int | None = None) -> np.ndarray:
    """Ids of the texts that occur in a table, or in one pool of it, sorted."""
    pools = slice(None) if pool is None else slice(pool, pool + 1)
    real = np.asarray(table.mask)[:, pools]
    return np.unique(np.concatenate([np.asarray(side)[:, pools][real] for side in (table.chosen, table.rejected)]))


def seen_in_training(dataset: Dataset) -> np.ndarray:
    """(texts,) which texts occur in the training rows."""
    seen = np.zeros(len(dataset.texts), bool)
    seen[texts_of(dataset.splits["train"].table)] = True
    return seen


def number_texts(texts: Iterable[Text], known: Sequence[Text] = ()) -> dict[Text, int]:
    """The row of each text in a feature table: the known texts first, then the new ones in order of appearance."""
    number = {text: i for i, text in enumerate(known)}
    new = (text for text in dict.fromkeys(texts) if text not in number)
    return number | {text: len(known) + i for i, text in enumerate(new)}


def append_texts(dataset: Dataset, number: dict[Text, int]) -> tuple[list[Text], np.ndarray]:
    """The texts and features of a data set with the new texts of `number_texts` appended."""
    new = [text for text, i in number.items() if i >= len(dataset.texts)]
    features = np.asarray(dataset.features)
    if new:
        features = np.concatenate([features, dataset.featuriser.transform(new)])
    return [*dataset.texts, *new], features


def choice_records(split: Split, texts: Sequence[Text], user: int, number: int) -> list[dict[str, Any]]:
    """The first choices of a user's context, at most `number`, as rows of a file (data/rows.py).

    Every second row has the chosen response as response_b, as in real data.
    """
    table, records = split.table, []
    for i in range(min(number, int(np.asarray(table.count)[user, 0]))):
        (prompt, a), (_, b) = (texts[int(np.asarray(side)[user, 0, i])] for side in (table.chosen, table.rejected))
        first, second, choice = (a, b, 0) if i % 2 == 0 else (b, a, 1)
        row = {"user_id": split.users[user], "prompt": prompt, "response_a": first, "response_b": second}
        records.append({**row, "choice": choice})
    return records


def save(dataset: Dataset, directory: Path, tokens: TokenTable | None = None) -> None:
    """Writes the directory atomically; with `tokens`, also the tokens of all texts in tokens.npz."""
    with whole_directory(directory) as target:
        meta = {
            "format": _FORMAT,
            "featuriser": _KINDS[type(dataset.featuriser)],
            "groups": dataset.groups,
            "users": {name: split.users for name, split in dataset.splits.items()},
            "report": dataset.report,
        }
        (target / "meta.json").write_text(json.dumps(meta, ensure_ascii=False, indent=1), encoding="utf-8")
        lines = (json.dumps(text, ensure_ascii=False) for text in dataset.texts)
        (target / "texts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        np.save(target / "features.npy", dataset.features)
        arrays = {
            f"{name}/{field.name}": np.asarray(getattr(split.table, field.name))
            for name, split in dataset.splits.items()
            for field in dataclasses.fields(ChoiceTable)
        }
        np.savez(target / "tables.npz", **arrays)  # type: ignore[arg-type]
        if dataset.truth is not None:
            np.savez(target / "truth.npz", rewards=dataset.truth.rewards, log_prior=dataset.truth.log_prior)
        if tokens is not None:
            arrays = {name: getattr(tokens, name) for name in ("tokens", "starts", "ends", "lengths")}
            np.savez(target / "tokens.npz", **arrays)  # type: ignore[arg-type]
        dataset.featuriser.save(target)


def is_prepared(directory: Path) -> bool:
    """Whether `save` wrote this directory."""
    return (directory / "meta.json").is_file() and (directory / "tables.npz").is_file()


def load(directory: Path) -> Dataset:
    """Reads what `save` wrote; the features stay memory-mapped."""
    try:
        meta = json.loads((directory / "meta.json").read_text(encoding="utf-8"))
        if meta.get("format") != _FORMAT:
            raise UserError(f"{directory}: prepared by another version; run launch.prepare_data again")
        lines = (directory / "texts.jsonl").read_text(encoding="utf-8").split("\n")
        texts: list[Text] = [tuple(json.loads(line)) for line in lines if line]
        features = np.load(directory / "features.npy", mmap_mode="r", allow_pickle=False)
        with np.load(directory / "tables.npz", allow_pickle=False) as arrays:
            splits = {
                name: Split(
                    users, ChoiceTable(**{f.name: arrays[f"{name}/{f.name}"] for f in dataclasses.fields(ChoiceTable)})
                )
                for name, users in meta["users"].items()
            }
        truth = None
        if (directory / "truth.npz").exists():
            with np.load(directory / "truth.npz", allow_pickle=False) as arrays:
                truth = Truth(arrays["rewards"], arrays["log_prior"])
        featuriser: Featuriser
        if meta["featuriser"] == "tfidf":
            featuriser = TfidfFeaturiser.load(directory)
        elif meta["featuriser"] == "encoder":
            featuriser = EncoderFeaturiser.load(directory)
        elif meta["featuriser"] == "number":
            featuriser = NumberFeaturiser()
        else:
            featuriser = GivenFeaturiser(texts, features, str(directory))
        groups, report = meta["groups"], meta["report"]
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{directory}: damaged ({error}); run launch.prepare_data again") from error
    if len(features) != len(texts):
        raise UserError(f"{directory}: {len(features)} features for {len(texts)} texts; run launch.prepare_data again")
    return Dataset(texts, features, splits, groups, featuriser, truth, report)


def load_tokens(directory: Path) -> TokenTable | None:
    """The tokens that `save` wrote with the data set; None if it wrote none."""
    file = directory / "tokens.npz"
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as arrays:
            table = [arrays[name] for name in ("tokens", "starts", "ends", "lengths")]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file}: damaged ({error}); run launch.prepare_data again") from error
    return TokenTable(*table, too_long=np.flatnonzero(table[3] == 0).tolist())


def log_left_out(dataset: Dataset) -> None:
    """Logs what the data set leaves out: nothing is dropped silently."""
    report = dataset.report
    skipped = report.get("skipped", [])
    if skipped:
        more = " …" if len(skipped) > 5 else ""
        _log.warning("%d rows skipped (all in data/meta.json): %s%s", len(skipped), "; ".join(skipped[:5]), more)
    if report.get("duplicates"):
        _log.warning("%d duplicate rows kept once", report["duplicates"])
    users = report.get("left_out_users", [])
    if users:
        names = ", ".join(users[:10]) + (" …" if len(users) > 10 else "")
        _log.warning("%d users with too few rows left out: %s (all in data/meta.json)", len(users), names)
    for reason, number in report.get("left_out_rows", {}).items():
        if number:
            _log.warning("%d rows left out: %s", number, reason)


_KINDS = {TfidfFeaturiser: "tfidf", EncoderFeaturiser: "encoder", GivenFeaturiser: "given", NumberFeaturiser: "number"}
