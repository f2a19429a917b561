"""Real people: gain over the population model, against a MAP factor model on the same users, targets and contexts.

  python -m benchmarks.polis --data=polis.jsonl.gz --split=val       (for choosing settings)
  python -m benchmarks.polis --data=polis.jsonl.gz --split=test      (at the end)

Trains configs/rows.py:np_btl with every seed, scores it against the mean of the seeds' population models, and
averages the seeds' margins too ("ensemble"). The reference is a joint logistic factorisation of the training users'
choices and a Newton MAP fit for each new user. Prints JSON: accuracies and gains in points, means over users of each
user's mean over draws, with standard errors of the gain.
"""

import copy
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.factor_models import joint_factorisation, map_log_p
from configs import rows
from fssa_jax import program
from fssa_jax.config import NpBtl, RewardConfig, Rows
from fssa_jax.evaluate.controls import other_owners, with_contexts_of
from fssa_jax.evaluate.episodes import eligible_users, evaluation_episodes
from fssa_jax.evaluate.evaluate import evaluate
from fssa_jax.experiment.train import train
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.ops.metrics import preference_accuracy
from fssa_jax.tasks.predictor import Predictor
from fssa_jax.types import Episode, PyTree

_DATA = flags.DEFINE_string("data", "", "rows of the Polis data")
_SPLIT = flags.DEFINE_enum("split", "val", ["val", "test"], "whom to score")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds of the models")
_DRAWS = flags.DEFINE_integer("draws", 8, "random nested contexts a user")
_UNSEEN = flags.DEFINE_bool("unseen", True, "also train without the held-out items and score unseen statements")

_KS = (0, 5, 10, 20)


class Scores:
    """Accuracy of each user, from log p of (draws, k, users, targets)."""

    def __init__(self, mask: np.ndarray, baselines: list[np.ndarray]):
        self.mask = mask
        self.baseline = np.mean([self.by_user(log_p[None, None])[0] for log_p in baselines], axis=0)

    def by_user(self, log_p: np.ndarray) -> np.ndarray:
        """(k, users), averaged over draws."""
        hits = np.asarray(preference_accuracy(jnp.asarray(log_p, jnp.float32))).mean(0)
        return (hits * self.mask).sum(-1) / np.maximum(self.mask.sum(-1), 1)

    def summary(self, *log_ps: np.ndarray) -> dict:
        """Mean over models; the gain in points over the population with its standard error over users."""
        accuracy = np.mean([self.by_user(log_p) for log_p in log_ps], axis=0)
        nll = np.mean([(-log_p.mean(0) * self.mask).sum(-1) / self.mask.sum(-1) for log_p in log_ps], axis=0)
        return {
            str(k): {"accuracy": round(float(a.mean()), 4), "nll": round(float(n.mean()), 4), **gain(a, self.baseline)}
            for k, a, n in zip(_KS, accuracy, nll, strict=True)
        }


def gain(accuracy: np.ndarray, other: np.ndarray) -> dict:
    """Paired difference in points, and its standard error over users."""
    difference = 100 * (accuracy - other)
    return {
        "gain": round(float(difference.mean()), 2),
        "se": round(float(difference.std() / len(difference) ** 0.5), 2),
    }


def train_one(seed: int, unseen: bool = False) -> tuple[Workdir, PyTree, PyTree]:
    """A work directory's content, the variables of the model, and those of its population model."""
    config = rows.get_config("np_btl")
    assert isinstance(config, RewardConfig)
    assert isinstance(config.data, Rows)
    assert isinstance(config.model, NpBtl)
    config.seed = seed
    config.data.path = _DATA.value
    config.data.hold_out_items = unseen
    config.evaluate.k = _KS
    config.train.specialist_steps = 0
    if unseen:  # new texts have features only
        config.auto = "no"
        config.model.response, config.model.text_dropout, config.model.learn_texts = "linear", 0.2, "yes"
    with TemporaryDirectory() as directory:
        work = train(config, Path(directory))
        main, population = work.trained("main"), work.trained("population")
        work.dataset.features = np.array(work.dataset.features)  # the directory goes away
    assert main is not None
    assert population is not None
    return work, main[0], population[0]


def predictor(work: Workdir, name: str, variables: PyTree) -> Predictor:
    """What a model predicts of the people who are scored."""
    return work.task.predictor(name, work.dataset.splits[_SPLIT.value])(variables)


def main() -> None:
    """Trains, scores, prints."""
    start = time.perf_counter()
    trained = [train_one(int(seed)) for seed in _SEEDS.value]
    dataset = trained[0][0].dataset
    split = dataset.splits[_SPLIT.value]
    table = jax.tree.map(jnp.asarray, split.table)
    users, _ = eligible_users(split, max(_KS))
    features = jnp.asarray(dataset.features)
    episodes = [evaluation_episodes(0, d, table, jnp.asarray(users), max_context=max(_KS)) for d in range(_DRAWS.value)]
    mask = np.asarray(episodes[0].targets.mask)

    mains = [predictor(work, "main", main) for work, main, _ in trained]

    def predict(main: Predictor, es: list[Episode]) -> np.ndarray:
        return np.stack([main.predict(e, _KS).log_p for e in es])

    populations = [
        predictor(work, "population", population).predict(episodes[0], (0,)).log_p[0] for work, _, population in trained
    ]
    scores = Scores(mask, populations)
    models = [predict(main, episodes) for main in mains]
    margins = np.mean([log_p - np.log(-np.expm1(np.minimum(log_p, -1e-7))) for log_p in models], axis=0)
    ensemble = -np.logaddexp(0, -margins)

    params = trained[0][2]["params"]
    bias = params["text_bias"]["embedding"][:, 0]
    scale = trained[0][0].config.model.feature_scale
    start_rewards = scale * np.asarray(features @ params["population_reward"]["out"]["kernel"])[:, 0] + np.asarray(bias)
    reference = []
    for seed in _SEEDS.value:
        s, v = joint_factorisation(int(seed), dataset.splits["train"].table, start_rewards)
        at_k = [[np.asarray(map_log_p(s, v, e, jnp.asarray(k))[..., 0]) for k in _KS] for e in episodes]
        reference.append(np.array(at_k))
    group = np.asarray(table.group)[users]
    shuffled = []
    for draw, episode in enumerate(episodes):
        shuffled.append(with_contexts_of(episode, other_owners(np.random.default_rng(draw), group)))

    own = np.mean([scores.by_user(m) for m in models], axis=0)
    theirs = np.mean([scores.by_user(m) for m in reference], axis=0)
    out = {
        "split": _SPLIT.value,
        "users": len(users),
        "population_accuracy": round(float(scores.baseline.mean()), 4),
        "np_btl": scores.summary(*models),
        "np_btl_gain_by_seed": [[c["gain"] for c in scores.summary(m).values()] for m in models],
        "ensemble": scores.summary(ensemble),
        "map_reference": scores.summary(*reference),
        "np_btl_minus_map": {str(k): gain(a, b) for k, a, b in zip(_KS, own, theirs, strict=True)},
        "another_persons_context": scores.summary(*[predict(main, shuffled) for main in mains]),
    }
    if _UNSEEN.value:
        out["unseen_statements"] = unseen_statements(int(_SEEDS.value[0]))
    out["seconds"] = round(time.perf_counter() - start)
    print(json.dumps(out, indent=1))


def unseen_statements(seed: int) -> dict:
    """Both texts of the target unseen: a model trained without the held-out items, on their rows alone."""
    work, main, population = train_one(seed, unseen=True)
    settings = copy.deepcopy(work.config.evaluate)
    settings.draws, settings.shuffles = _DRAWS.value, 1
    split = work.dataset.splits[_SPLIT.value]
    others = {"population": predictor(work, "population", population)}
    report = evaluate(predictor(work, "main", main), split, work.dataset, settings, others=others).report
    return {
        "rows": report["targets"]["unseen"],
        "np_btl": report.get("accuracy_unseen"),
        "population": report.get("population_unseen"),
    }


if __name__ == "__main__":
    program.run(main, __doc__ or "")
