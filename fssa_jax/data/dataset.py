"""A prepared data set: texts, their features, and tables of choices, in memory and as a directory."""

import dataclasses
import json
import logging
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
from fssa_jax.data.manner import MannerFeaturiser
from fssa_jax.data.quantities import QuantityFeaturiser
from fssa_jax.data.thresholds import THUMB, ThresholdFeaturiser, is_threshold, thresholds_of
from fssa_jax.errors import UserError
from fssa_jax.files import check_digests, digest_file, whole_directory, write_digests
from fssa_jax.lm.messages import messages_of
from fssa_jax.lm.token_table import TokenTable
from fssa_jax.types import ChoiceTable

_log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
_FORMAT = 3


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
    unfinished: frozenset[int] = frozenset()  # ids of the texts whose response was cut off before its end
    trained_texts: int | None = None  # number of texts in training, if texts of other people were appended

    @property
    def thresholds(self) -> np.ndarray:
        """(texts,) which rows are no texts but thresholds of thumbs and ratings."""
        return np.array([is_threshold(text) for text in self.texts], bool)

    @property
    def known_texts(self) -> int:
        """Number of texts that can have a learnt embedding."""
        return len(self.texts) if self.trained_texts is None else self.trained_texts


def make_table(
    choices: Sequence[Sequence[np.ndarray]], group: list[int], weights: Sequence[Sequence[np.ndarray]] | None = None
) -> ChoiceTable:
    """Pads choices[user][pool] to a rectangle: ids (rows, 2 + a) of responses, the chosen one first, −1 for none.

    `weights[user][pool]` (rows,) are the weights of the rows. If all are 1 the table has none.
    """
    users = len(choices)
    rows = max((len(pool) for user in choices for pool in user), default=1)
    width = max((pool.shape[1] for user in choices for pool in user if len(pool)), default=2)
    ids = np.full((users, 2, max(rows, 1), width), -1, np.int32)
    count = np.zeros((users, 2), np.int32)
    for u, user in enumerate(choices):
        for p, pool in enumerate(user):
            ids[u, p, : len(pool), : pool.shape[1]], count[u, p] = pool, len(pool)
    chosen, rejected = np.maximum(ids[..., 0], 0), np.maximum(ids[..., 1], 0)
    others = ids[..., 2:] if width > 2 else None
    weight = np.ones(chosen.shape, np.float32)
    for u, of_user in enumerate(weights or ()):
        for p, of_pool in enumerate(of_user):
            weight[u, p, : len(of_pool)] = of_pool
    own = None if (weight == 1).all() else weight
    return ChoiceTable(chosen, rejected, count, np.asarray(group, np.int32).reshape(users), others, own)


def arrays_of(table: ChoiceTable) -> dict[str, np.ndarray]:
    """The arrays of a table by name; without `others` and `weight` where there are none."""
    values = {field.name: getattr(table, field.name) for field in dataclasses.fields(ChoiceTable)}
    return {name: np.asarray(value) for name, value in values.items() if value is not None}


def has_lists(dataset: "Dataset") -> bool:
    """Whether choices are of one among more than two."""
    return any(split.table.others is not None for split in dataset.splits.values())


def all_of(table: ChoiceTable, texts: np.ndarray) -> np.ndarray:
    """(users, 2, rows) whether a property of texts (texts,) holds for all responses of a choice."""
    good = texts[np.asarray(table.chosen)] & texts[np.asarray(table.rejected)]
    if table.others is not None:
        others = np.asarray(table.others)
        good &= (texts[np.maximum(others, 0)] | (others < 0)).all(-1)
    return good


def texts_of(table: ChoiceTable, pool: int | None = None) -> np.ndarray:
    """Ids of the texts, and of the thresholds, that occur in a table or in one pool of it, sorted."""
    pools = slice(None) if pool is None else slice(pool, pool + 1)
    real = np.asarray(table.mask)[:, pools]
    sides = [table.chosen, table.rejected] + ([] if table.others is None else list(np.moveaxis(table.others, -1, 0)))
    ids = np.unique(np.concatenate([np.asarray(side)[:, pools][real] for side in sides]))
    return ids[ids >= 0]


def seen_in_training(dataset: Dataset) -> np.ndarray:
    """(texts,) which texts occur in the training rows; a threshold is no text."""
    seen = np.zeros(len(dataset.texts), bool)
    seen[texts_of(dataset.splits["train"].table)] = True
    return seen & ~dataset.thresholds


def number_texts(texts: Iterable[Text], known: Sequence[Text] = ()) -> dict[Text, int]:
    """The row of each text in a feature table: the known texts first, then the new ones in order of appearance."""
    number = {text: i for i, text in enumerate(known)}
    new = (text for text in dict.fromkeys(texts) if text not in number)
    return number | {text: len(known) + i for i, text in enumerate(new)}


def featuriser_of_texts(featuriser: Any) -> Any:
    """The innermost featuriser: that of texts, without columns for thresholds, quantities and manner."""
    while isinstance(featuriser, (ThresholdFeaturiser, QuantityFeaturiser, MannerFeaturiser)):
        featuriser = featuriser.texts
    return featuriser


def width_of_texts(dataset: Dataset) -> int:
    """The number of features without the columns of thresholds and quantities."""
    featuriser: Any = dataset.featuriser
    more = len(thresholds_of(featuriser))
    featuriser = featuriser.texts if isinstance(featuriser, ThresholdFeaturiser) else featuriser
    more += len(featuriser.columns) if isinstance(featuriser, QuantityFeaturiser) else 0
    return dataset.features.shape[1] - more


def append_texts(dataset: Dataset, number: dict[Text, int]) -> tuple[list[Text], np.ndarray]:
    """The texts and features of a data set with the new texts of `number_texts` appended."""
    new = [text for text, i in number.items() if i >= len(dataset.texts)]
    features = np.asarray(dataset.features)
    if new:
        features = np.concatenate([features, dataset.featuriser.transform(new)])
    return [*dataset.texts, *new], features


def choice_records(split: Split, texts: Sequence[Text], user: int, number: int) -> list[dict[str, Any]]:
    """The first choices of a user's context, at most `number`, as rows of a file (data/rows.py).

    Every second row has the chosen response as response_b, as in real data. Of ratings, which are several choices each,
    there are none.
    """
    table, records = split.table, []
    for i in range(int(np.asarray(table.count)[user, 0])):
        if len(records) == number:
            break
        (prompt, a), (other, b) = (texts[int(np.asarray(side)[user, 0, i])] for side in (table.chosen, table.rejected))
        if not a or not b:  # a threshold
            name, prompt, response = (other, prompt, a) if a else (prompt, other, b)
            if name == THUMB.name:
                messages = messages_of(prompt)
                asked = prompt if len(messages) == 1 else messages
                records.append({"user_id": split.users[user], "prompt": asked, "response": response, "label": bool(a)})
            continue
        messages = messages_of(prompt)
        row: dict[str, Any] = {"user_id": split.users[user], "prompt": prompt if len(messages) == 1 else messages}
        others = [] if table.others is None else [int(t) for t in np.asarray(table.others)[user, 0, i] if t >= 0]
        if others:
            responses = [b, *(texts[t][1] for t in others)]
            place = i % (len(responses) + 1)
            row |= {"responses": [*responses[:place], a, *responses[place:]], "choice": place}
        else:
            first, second, choice = (a, b, 0) if i % 2 == 0 else (b, a, 1)
            row |= {"response_a": first, "response_b": second, "choice": choice}
        records.append(row)
    return records


def save(dataset: Dataset, directory: Path, tokens: TokenTable | None = None) -> None:
    """Writes the directory atomically; with `tokens`, also the tokens of all texts in tokens.npz."""
    with whole_directory(directory) as target:
        meta = {
            "format": _FORMAT,
            "featuriser": featuriser_kind(dataset.featuriser),
            "groups": dataset.groups,
            "users": {name: split.users for name, split in dataset.splits.items()},
            "report": dataset.report,
            "unfinished": sorted(dataset.unfinished),
        }
        (target / "meta.json").write_text(json.dumps(meta, ensure_ascii=False, indent=1), encoding="utf-8")
        lines = (json.dumps(text, ensure_ascii=False) for text in dataset.texts)
        (target / "texts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        np.save(target / "features.npy", dataset.features)
        arrays = {
            f"{name}/{key}": value
            for name, split in dataset.splits.items()
            for key, value in arrays_of(split.table).items()
        }
        np.savez(target / "tables.npz", **arrays)  # type: ignore[arg-type]
        if dataset.truth is not None:
            np.savez(target / "truth.npz", rewards=dataset.truth.rewards, log_prior=dataset.truth.log_prior)
        if tokens is not None:
            arrays = {name: getattr(tokens, name) for name in ("tokens", "starts", "ends", "lengths")}
            np.savez(target / "tokens.npz", **arrays)  # type: ignore[arg-type]
        dataset.featuriser.save(target)
        write_digests(target)


def is_prepared(directory: Path) -> bool:
    """Whether `save` wrote this directory."""
    return (directory / "meta.json").is_file() and (directory / "tables.npz").is_file()


def digest(directory: Path) -> str:
    """The digest of a prepared directory."""
    return f"{digest_file(directory / 'digests.json'):08x}" if (directory / "digests.json").is_file() else ""


def load(directory: Path) -> Dataset:
    """Reads what `save` wrote, verified by checksums; the features stay memory-mapped."""
    try:
        meta = json.loads((directory / "meta.json").read_text(encoding="utf-8"))
        if meta.get("format") != _FORMAT:
            raise UserError(f"{directory}: prepared by another version; run launch.prepare_data again")
        check_digests(directory)
        lines = (directory / "texts.jsonl").read_text(encoding="utf-8").split("\n")
        texts: list[Text] = [tuple(json.loads(line)) for line in lines if line]
        features = np.load(directory / "features.npy", mmap_mode="r", allow_pickle=False)
        with np.load(directory / "tables.npz", allow_pickle=False) as arrays:
            splits = {}
            for name, users in meta["users"].items():
                mine = {key.removeprefix(f"{name}/"): arrays[key] for key in arrays.files if key.startswith(f"{name}/")}
                splits[name] = Split(users, ChoiceTable(**mine))
        truth = None
        if (directory / "truth.npz").exists():
            with np.load(directory / "truth.npz", allow_pickle=False) as arrays:
                truth = Truth(arrays["rewards"], arrays["log_prior"])
        featuriser = load_featuriser(directory, meta["featuriser"], texts, features)
        groups, report = meta["groups"], meta["report"]
    except UserError:
        raise
    except Exception as error:  # damaged files surface as many kinds
        raise UserError(f"{directory}: damaged ({error}); run launch.prepare_data again") from error
    if len(features) != len(texts):
        raise UserError(f"{directory}: {len(features)} features for {len(texts)} texts; run launch.prepare_data again")
    unfinished = frozenset(meta.get("unfinished", ()))
    return Dataset(texts, features, splits, groups, featuriser, truth, report, unfinished)


def load_featuriser(directory: Path, kind: str, texts: list[Text], features: np.ndarray) -> Featuriser:
    """The featuriser that was saved in a directory; `texts` and `features` are for one of given vectors."""
    if kind == "tfidf":
        of_texts: Any = TfidfFeaturiser.load(directory)
    elif kind == "encoder":
        of_texts = EncoderFeaturiser.load(directory)
    elif kind == "number":
        of_texts = NumberFeaturiser()
    else:
        of_texts = GivenFeaturiser(texts, features, str(directory))
    of_texts = QuantityFeaturiser.load(directory, MannerFeaturiser.load(directory, of_texts))
    return ThresholdFeaturiser.load(directory, of_texts)


def featuriser_kind(featuriser: Featuriser) -> str:
    """What `load_featuriser` is told of a featuriser that was saved."""
    return _KINDS[type(featuriser_of_texts(featuriser))]


def load_tokens(directory: Path) -> TokenTable | None:
    """The tokens that `save` wrote with the data set; None if it wrote none."""
    file = directory / "tokens.npz"
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as arrays:
            table = [arrays[name] for name in ("tokens", "starts", "ends", "lengths")]
    except Exception as error:  # damaged archives surface as many kinds
        raise UserError(f"{file}: damaged ({error}); run launch.prepare_data again") from error
    return TokenTable(*table, too_long=np.flatnonzero(table[3] == 0).tolist())


def log_left_out(dataset: Dataset) -> None:
    """Logs what the data set leaves out: nothing is dropped silently."""
    report = dataset.report
    log_left_out_rows(report)
    users = report.get("left_out_users", [])
    if users:
        names = ", ".join(users[:10]) + (" …" if len(users) > 10 else "")
        _log.warning("%d users with too few rows left out: %s (meta.json lists all)", len(users), names)
    for reason, number in report.get("left_out_rows", {}).items():
        if number:
            _log.warning("%d rows left out: %s", number, reason)


def log_left_out_rows(report: dict[str, Any]) -> None:
    """Logs the rows of a source that are no choices."""
    skipped = report.get("skipped", [])
    if skipped:
        more = " …" if len(skipped) > 5 else ""
        _log.warning("%d rows skipped (meta.json lists all): %s%s", len(skipped), "; ".join(skipped[:5]), more)
    if report.get("duplicates"):
        _log.warning("%d duplicate rows kept once", report["duplicates"])
    if report.get("unpaired"):
        _log.warning("%d people left out: their ratings of responses to one prompt are all alike", report["unpaired"])
    for name, what in (("ties", "ties"), ("unanswered", "rows without an answer")):
        if report.get(name):
            first = next(line for line in report["undecided"] if line.endswith(": tie") == (name == "ties"))
            _log.warning("%d %s left out, the first is %s", report[name], what, first)
    if report.get("halved"):
        _log.info("%d ties kept as two choices each, one each way, of weight ½", report["halved"])
    if report.get("levels"):
        _log.info("levels of ratings begin at %s", ", ".join(f"{bound:g}" for bound in report["levels"]))
    if report.get("implicit"):
        said = "%d rows have no prompt: the beginning that chosen and rejected share is taken for it; give 'prompt' if "
        _log.warning(said + "their responses may begin alike", report["implicit"])


_KINDS = {TfidfFeaturiser: "tfidf", EncoderFeaturiser: "encoder", GivenFeaturiser: "given", NumberFeaturiser: "number"}
