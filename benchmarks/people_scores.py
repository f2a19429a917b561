"""Trains and scores every model of benchmarks.people on a data set, and summarises the seeds."""

import dataclasses
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.factor_models import fit_mixed_logit, map_log_p, point_log_p, principal_columns, tuned_factor_model
from benchmarks.people_data import MADE_UP, attributes, name_of, rows_file
from configs import rows
from fssa_jax.config import RewardConfig, Rows
from fssa_jax.config.experiment import read
from fssa_jax.data.dataset import seen_in_training, texts_of
from fssa_jax.data.row_dataset import rows_dataset
from fssa_jax.evaluate.chance import confidences, ece_by_chance
from fssa_jax.evaluate.episodes import eligible_users, evaluation_episodes, reached
from fssa_jax.experiment.train import train
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.files import write_text
from fssa_jax.ops import metrics
from fssa_jax.tasks.predictor import Predictions
from fssa_jax.types import Episode

_KS = (0, 1, 3, 5, 10, 20)
_REDRAWS = 20
_RIVALS = ("population", "map", "mixed_logit", "attributes")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How every data set is measured.

    Attributes:
      room: directory for rows, work directories and results.
      draws: random nested contexts a person.
      lists, situations: names of files; see `people_data.rows_file`.
      mixed_logit: whether to fit it.
    """

    room: Path
    draws: int = 8
    lists: Sequence[str] = ()
    situations: Sequence[str] = ()
    mixed_logit: bool = True


def configuration(path: str, seed: int, ks: tuple[int, ...]) -> RewardConfig:
    """configs/rows.py:np_btl with its defaults."""
    config = rows.get_config("np_btl")
    assert isinstance(config, RewardConfig)
    assert isinstance(config.data, Rows)
    config.seed = config.data.split_seed = seed
    config.data.path = path
    config.evaluate.k = ks
    config.train.specialist_steps = 0
    return config


def context_sizes(path: str, seed: int, work: Path) -> tuple[int, ...]:
    """The k that at least half of the test people reach; of a work directory, the k that it was made with."""
    if (work / "config.json").is_file():
        config: Any = read(work / "config.json")
        return tuple(config.evaluate.k)
    data: Any = dataclasses.replace(configuration(path, seed, _KS).data, features="tfidf", components=2)
    return reached(_KS, [rows_dataset(data).splits["test"]])


def predictions(log_p: Any, episode: Episode) -> Predictions:
    """Predictions from log p of the offered responses, (ks, users, targets, r), the chosen one first."""
    log_p = np.asarray(log_p)
    best = None if episode.targets.others is None else log_p[..., 1:].max(-1)
    nothing = np.zeros((*log_p.shape[:2], 0))
    return Predictions(log_p[..., 0], nothing, nothing, {}, best)


def scored(draws: Sequence[Predictions], mask: np.ndarray) -> dict[str, Any]:
    """accuracy and nll of each person, (k, people), means over draws; ece and ece_by_chance, (k,).

    By chance a calibrated model has an ECE above 0; see `fssa_jax.evaluate.chance`.
    """
    number = mask.sum(-1)

    def of_people(values: Iterable[np.ndarray]) -> list[list[float]]:
        mean = np.mean([(value * mask).sum(-1) / number for value in values], axis=0)
        return [[round(float(x), 6) for x in at_k] for at_k in mean]

    ece, chance, rng = [], [], np.random.default_rng(0)
    for k in range(len(draws[0].log_p)):
        given = [
            confidences(draw.log_p[k], None if draw.log_best_other is None else draw.log_best_other[k])
            for draw in draws
        ]
        redrawn = [ece_by_chance(given, mask.astype(float), rng) for _ in range(_REDRAWS)]
        chance.append(round(float(np.mean(redrawn)), 5))
        counts = np.zeros(())
        for draw in draws:
            best = None if draw.log_best_other is None else jnp.exp(draw.log_best_other[k])
            of_draw = metrics.calibration_counts(jnp.exp(draw.log_p[k]), jnp.asarray(mask), best_other=best)
            counts = counts + np.asarray(of_draw).sum(0)
        ece.append(round(float(metrics.ece_from_counts(jnp.asarray(counts))), 5))
    return {
        "accuracy": of_people(draw.hits for draw in draws),
        "nll": of_people(-draw.log_p for draw in draws),
        "ece": ece,
        "ece_by_chance": chance,
    }


def population_rewards(work: Workdir, variables: Any) -> np.ndarray:
    """s (texts,) of the population model."""
    task: Any = work.task
    ids = jnp.arange(len(work.dataset.texts))
    features = jnp.asarray(work.dataset.features)
    return np.asarray(task.model("population").apply(variables, ids, None, features, method="rewards"))[0, :, 0]


def measure(data: str, seed: int, settings: Settings) -> dict[str, Any]:
    """Trains on one data set with one seed, and scores every model."""
    name = name_of(data)
    path = str(rows_file(data, settings.room, settings.lists, settings.situations))
    directory = settings.room / f"{name}-{seed}"
    ks = context_sizes(path, seed, directory)
    start = time.perf_counter()
    work = train(configuration(path, seed, ks), directory)
    seconds = {"train": time.perf_counter() - start}
    dataset, split = work.dataset, work.dataset.splits["test"]
    main, population, fitted = work.trained(), work.trained("population"), work.calibration()
    assert main is not None
    assert population is not None
    assert fitted is not None
    users, left_out = eligible_users(split, max(ks))
    table = jax.tree.map(jnp.asarray, split.table)
    people = jnp.asarray(users)
    episodes = [evaluation_episodes(0, d, table, people, max_context=max(ks)) for d in range(settings.draws)]
    mask = np.asarray(episodes[0].targets.mask)
    result: dict[str, Any] = {
        "k": list(ks),
        "people": [split.users[u] for u in users],
        "left_out": len(left_out),
        "targets": int(mask.sum()),
        "train_people": len(dataset.splits["train"].users),
        "chosen": work.run.get("chosen"),
        "steps": main[1],
        "calibration": fitted.as_json(),
    }
    series: dict[str, Any] = {}

    def add(series_name: str, predict: Any) -> None:
        begin = time.perf_counter()
        series[series_name] = scored([predict(episode) for episode in episodes], mask)
        seconds[series_name] = seconds.get(series_name, 0.0) + time.perf_counter() - begin

    everybody = work.task.predictor("population", split)(population[0])
    add("population", lambda episode: everybody.predict(episode, (0,)).repeated(len(ks)))
    own = work.task.predictor("main", split)(main[0])
    add("np_btl", lambda episode: own.predict(episode, ks))

    shared = population_rewards(work, population[0])
    seen = seen_in_training(dataset)
    features = np.asarray(dataset.features, np.float32)
    centred = features - features[seen].mean(0)
    bases: dict[str, np.ndarray | None] = {"features": centred / max(centred[seen].var(0).sum() ** 0.5, 1e-6)}
    if seen[texts_of(split.table)].mean() >= 0.5:
        bases["texts"] = None
    validation = dataset.splits["val"]
    val_users, _ = eligible_users(validation, 0)
    val_table = jax.tree.map(jnp.asarray, validation.table)
    episode = evaluation_episodes(1, 0, val_table, jnp.asarray(val_users), max_context=max(ks))
    begin = time.perf_counter()
    factors = tuned_factor_model(seed, dataset.splits["train"].table, shared, bases, episode, ks)
    seconds["map"] = time.perf_counter() - begin
    result["map"] = factors.settings
    s, f, _ = factors
    add("map", lambda e: predictions(np.stack([map_log_p(s, f, e, jnp.asarray(k)) for k in ks]), e))

    if settings.mixed_logit:
        known = attributes(name, dataset.texts)
        columns = {"mixed_logit": features} | ({} if known is None else {"attributes": known})
        for which, values in columns.items():
            x = principal_columns(values, seen)
            begin = time.perf_counter()
            mixed = fit_mixed_logit(seed, dataset.splits["train"].table, shared, x)
            seconds[which] = time.perf_counter() - begin
            result[which] = mixed.facts
            add(which, lambda e, m=mixed, x=x: predictions(m.log_p(shared, x, e, ks), e))

    if data in MADE_UP:
        truth = MADE_UP[data]()
        true_s, true_f = map(jnp.asarray, truth.of_texts(dataset.texts))
        points = jnp.asarray(truth.points)
        add("limit", lambda e: predictions(point_log_p(true_s, true_f, points, e, ks, truth.lapse), e))
    return result | {"series": series, "seconds": {key: round(value, 1) for key, value in seconds.items()}}


def stored(data: str, seed: int, settings: Settings) -> dict[str, Any]:
    """The result of one data set and seed: that in the room, if it has every series that is asked for."""
    file = settings.room / f"{name_of(data)}-{seed}.json"
    if file.is_file():
        found = json.loads(file.read_text(encoding="utf-8"))
        of_this_version = "ece_by_chance" in found["series"]["np_btl"]
        if of_this_version and (not settings.mixed_logit or "mixed_logit" in found["series"]):
            return found
    result = measure(data, seed, settings)
    write_text(file, json.dumps(result))
    return result


def worst_decile(accuracy: np.ndarray) -> float:
    """The mean accuracy of the tenth of the people for whom it is lowest, one person at least."""
    weight = np.clip(max(len(accuracy) / 10, 1) - np.arange(len(accuracy)), 0, 1)
    return float((np.sort(accuracy) * weight).sum() / weight.sum())


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of one data set: means over seeds, paired differences, and goals."""
    ks = [k for k in results[0]["k"] if all(k in result["k"] for result in results)]
    placed = [(result, [result["k"].index(k) for k in ks]) for result in results]

    def values(result: dict[str, Any], place: list[int], name: str, what: str) -> np.ndarray:
        return np.array(result["series"][name][what])[place]

    names = [name for name in results[0]["series"] if all(name in result["series"] for result in results)]
    table: dict[str, dict[str, Any]] = {}
    for name in names:
        wanted = ("accuracy", "nll", "ece", "ece_by_chance")
        each = [{what: values(r, p, name, what) for what in wanted} for r, p in placed]
        cells = {
            "accuracy": 100 * np.mean([one["accuracy"].mean(-1) for one in each], axis=0),
            "nll": np.mean([one["nll"].mean(-1) for one in each], axis=0),
            "ece": np.mean([one["ece"] for one in each], axis=0),
            "ece_by_chance": np.mean([one["ece_by_chance"] for one in each], axis=0),
            "worst_decile": 100 * np.mean([[worst_decile(a) for a in one["accuracy"]] for one in each], axis=0),
        }
        table[name] = {
            what: _by_k(ks, cell, 2 if what in ("accuracy", "worst_decile") else 4) for what, cell in cells.items()
        }
    differences: dict[str, dict[str, Any]] = {}
    for rival in (name for name in _RIVALS if name in names):
        differences[f"np_btl_minus_{rival}"] = {}
        for what, factor, digits in (("accuracy", 100, 2), ("nll", 1, 4)):
            of_person: dict[str, list[np.ndarray]] = {}
            for result, place in placed:
                paired = values(result, place, "np_btl", what) - values(result, place, rival, what)
                for person, difference in zip(result["people"], paired.T, strict=True):
                    of_person.setdefault(person, []).append(factor * difference)
            pooled = np.array([np.mean(seeds, axis=0) for seeds in of_person.values()])
            error = pooled.std(0, ddof=1) / len(pooled) ** 0.5 if len(pooled) > 1 else np.full(len(ks), np.nan)
            differences[f"np_btl_minus_{rival}"][what] = {
                str(k): {"mean": round(float(m), digits), "se": None if np.isnan(e) else round(float(e), digits)}
                for k, m, e in zip(ks, pooled.mean(0), error, strict=True)
            }
    return {
        "k": ks,
        "people": [len(result["people"]) for result in results],
        "left_out": [result["left_out"] for result in results],
        "targets": [result["targets"] for result in results],
        "train_people": [result["train_people"] for result in results],
        **table,
        **differences,
        "goals": goals(ks, table),
        "chosen": [result["chosen"] and result["chosen"]["name"] for result in results],
        "guard_open": [result["calibration"]["helps"] for result in results],
        "map_settings": [result["map"] for result in results],
        "mixed_logit_fits": [
            {name: result[name] for name in ("mixed_logit", "attributes") if name in result} for result in results
        ],
        "seconds": [result["seconds"] for result in results],
    }


def goals(ks: Sequence[int], table: dict[str, dict[str, Any]]) -> dict[str, dict[str, bool]]:
    """What NP-BTL should reach, by k; only comparisons with series that there are."""
    own = table["np_btl"]
    rivals = [table[name] for name in ("map", "mixed_logit") if name in table]
    out: dict[str, dict[str, bool]] = {}
    for k in map(str, ks):
        met = {"accuracy_at_least_map": own["accuracy"][k] >= table["map"]["accuracy"][k]}
        if "mixed_logit" in table:
            wanted = table["mixed_logit"]["accuracy"][k] - 0.3
            met["accuracy_at_least_mixed_logit_less_0.3"] = own["accuracy"][k] >= wanted
        met["nll_at_most_both"] = all(own["nll"][k] <= rival["nll"][k] for rival in rivals)
        met["ece_at_most_0.02"] = own["ece"][k] <= 0.02
        met["ece_at_most_0.02_over_chance"] = own["ece"][k] - own["ece_by_chance"][k] <= 0.02
        met["accuracy_at_least_population_less_0.3"] = own["accuracy"][k] >= table["population"]["accuracy"][k] - 0.3
        for what, name in (("accuracy", "mean"), ("worst_decile", "worst_decile")):
            met[f"{name}_at_least_population_less_1"] = own[what][k] >= table["population"][what][k] - 1
        for name, value in met.items():
            out.setdefault(name, {})[k] = bool(value)
    return out


def markdown(name: str, found: dict[str, Any]) -> str:
    """The table of a data set: a row per k, and accuracy, NLL, ECE and worst decile of each series."""
    series = [one for one in ("population", "map", "mixed_logit", "attributes", "np_btl", "limit") if one in found]
    lines = [f"**{name}**: accuracy / NLL / ECE / worst decile", "", f"| k | {' | '.join(series)} |"]
    lines.append("|---" * (len(series) + 1) + "|")
    for k in map(str, found["k"]):
        cells = [
            f"{found[one]['accuracy'][k]:.1f} / {found[one]['nll'][k]:.3f} / {found[one]['ece'][k]:.3f} / "
            f"{found[one]['worst_decile'][k]:.1f}"
            for one in series
        ]
        lines.append(f"| {k} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _by_k(ks: Sequence[int], values: np.ndarray, digits: int) -> dict[str, float]:
    return {str(k): round(float(value), digits) for k, value in zip(ks, values, strict=True)}
