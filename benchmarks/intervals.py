"""How often intervals of S hold what they should, on `styles`. Prints JSON.

  python -m benchmarks.intervals --trials=200 --users=200

Scores the Bayes predictor, which cannot leak, with contexts that say nothing about a person: another person's
(control), and choices of a person each (scrambled). S is then 0 in expectation, so that 95 % of the 95 % intervals
should contain 0; coverage_of_all_k is how often all four of an evaluation do, whose contexts are nested. Every trial
takes another part of the held-out people of one of ten data sets, other contexts and other owners of them; 12 targets
of each person and the mean of two drawings of owners, as policies are scored.
"""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from configs.styles import get_config
from fssa_jax import program
from fssa_jax.config import RewardConfig, Styles
from fssa_jax.data.build import load_dataset
from fssa_jax.data.dataset import Truth
from fssa_jax.errors import UserError
from fssa_jax.evaluate.bayes import bayes_log_p
from fssa_jax.evaluate.evaluate import evaluate
from fssa_jax.tasks.predictor import Predictor
from fssa_jax.types import DiagGaussian, Episode

_TRIALS = flags.DEFINE_integer("trials", 200, "how many evaluations")
_USERS = flags.DEFINE_integer("users", 200, "people of each, up to 1,000")
_K = (1, 3, 5, 10)
_DATA_SETS, _PEOPLE = 10, 1000


def bayes_predictor(truth: Truth) -> Predictor:
    """The Bayes predictor of known people. It has no latent of its own, and says that it is always 0."""

    def infer(episodes: Episode) -> DiagGaussian:
        nothing = jnp.zeros((len(episodes.user), 1))
        return DiagGaussian(nothing, nothing)

    def score(q: DiagGaussian, episodes: Episode) -> dict[str, np.ndarray]:
        del q
        whole = episodes.context.mask.shape[1]  # choices beyond k are masked already
        return {"log_p": bayes_log_p(truth, episodes, (whole,))[0]}

    return Predictor(infer, score, reads=True)


def coverage(trials: int, users: int) -> dict[str, dict[str, Any]]:
    """Of each control, by k: mean and deviation of S and mean half width in points, and the share of intervals."""
    cells: dict[str, list[list[tuple[float, float, float]]]] = {"control": [], "scrambled": []}
    for seed in range(min(trials, _DATA_SETS)):
        config = get_config("np_btl")
        assert isinstance(config, RewardConfig)
        assert isinstance(config.data, Styles)
        config.seed, config.data.split_seed, config.data.train_users = 1000 + seed, 1000 + seed, 100
        data = load_dataset(config.data, max(config.evaluate.k), config.train.targets)
        split, truth = data.splits["test"], data.truth
        assert truth is not None
        settings = dataclasses.replace(config.evaluate, k=_K, draws=1, shuffles=2)
        for trial in range(seed, trials, _DATA_SETS):
            begin = trial // _DATA_SETS * users % (_PEOPLE - users + 1) // 100 * 100
            part = np.arange(begin, begin + users)  # neighbours judge the same pairs
            people = dataclasses.replace(
                split,
                table=jax.tree.map(lambda x, part=part: jnp.asarray(x)[part], split.table),
                users=[split.users[i] for i in part],
            )
            report = evaluate(bayes_predictor(truth), people, data, settings, seed=trial, max_targets=12).report
            for name, found in cells.items():
                found.append([(c["mean"], c["low"], c["high"]) for c in report[f"{name}_steering"].values()])
    out = {}
    for name, found in cells.items():
        mean, low, high = np.moveaxis(np.array(found), -1, 0)
        holds = (low <= 0) & (high >= 0)
        rounded = {"mean": mean.mean(0), "deviation": mean.std(0), "half_width": (high - low).mean(0) / 2}
        out[name] = {
            "k": list(_K),
            **{key: np.round(100 * value, 2).tolist() for key, value in rounded.items()},
            "coverage": np.round(holds.mean(0), 3).tolist(),
            "coverage_of_all_k": round(float(holds.all(1).mean()), 3),
        }
    return out


def main() -> None:
    """Prints one JSON object."""
    if not (_TRIALS.value > 0 and 2 <= _USERS.value <= _PEOPLE):
        raise UserError(f"--trials: from 1, --users: 2 to {_PEOPLE}")
    out = {"users": _USERS.value, "trials": _TRIALS.value, **coverage(_TRIALS.value, _USERS.value)}
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    program.run(main, __doc__ or "")
