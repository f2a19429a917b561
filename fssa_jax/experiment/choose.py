"""Chooses how a reward model represents texts and people, by short fits that are scored on validation people.

With `config.auto=yes` the following are decided, and nothing else:

* texts: a learnt embedding per text, from a matrix factorisation; a choice is a liked and a disliked response. For
  known texts and choices between two.
* ids: a learnt embedding per text; a choice is a comparison, as in all that follow. For known texts and longer lists.
* hybrid: linear in the features, plus a learnt embedding that is shrunk to 0. For known texts.
* features: linear in the features.
* kinds: the same, and people are of `_KINDS` kinds.

Texts are known if `config.model.learn_texts` was resolved to yes. Every candidate is trained for `_STEPS` steps, on the
same batches. The one with the lowest NLL of the validation people, over all k, is trained on. Where these are few, every
person but those for testing is held out once (experiment/folds.py), and the training starts anew.
"""

import copy
import dataclasses
import logging
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from fssa_jax.config import DiscretePrior, RewardConfig
from fssa_jax.data.dataset import Dataset, has_lists
from fssa_jax.evaluate.held_out import HeldOut
from fssa_jax.experiment.fit import fit
from fssa_jax.experiment.folds import FoldFits, Folds, folds_of_few
from fssa_jax.experiment.workdir import Workdir, read_run, write_settings
from fssa_jax.tasks.reward import RewardTask
from fssa_jax.tasks.task import MAIN, POPULATION
from fssa_jax.train.checkpoint import Checkpoints
from fssa_jax.train.loop import StopSignal
from fssa_jax.types import PyTree

_log = logging.getLogger(__name__)

_STEPS = 150
_WIDTH, _TEXTS_WIDTH, _KINDS = 16, 64, 64
_RATE, _TEXTS_RATE = 1e-2, 3e-3
_ONLY_FEATURES = 1.0  # weight of the penalty that keeps learnt embeddings at 0


def candidates(config: RewardConfig, dataset: Dataset) -> dict[str, RewardConfig]:
    """The configurations among which `choose` decides, by name; see above."""
    known = config.model.learn_texts == "yes"
    names = ["features", "kinds"]
    if known:
        names = [*(["ids"] if has_lists(dataset) else ["texts"]), "hybrid", *names]
    return {name: _candidate(copy.deepcopy(config), name, known, dataset) for name in names}


def _candidate(config: Any, name: str, known: bool, dataset: Dataset) -> RewardConfig:
    by_id = name in ("texts", "ids")
    choices = max(int(np.asarray(dataset.splits["train"].table.count).sum()), 1)
    config.model.response = "none" if by_id else "linear"
    config.model.width = _TEXTS_WIDTH if by_id else _WIDTH
    config.model.encoder.observations = ("responses",) if name == "texts" else ("difference",)
    if name == "kinds":
        config.model.encoder.prior = DiscretePrior(_KINDS)
    config.optim.learning_rate = _TEXTS_RATE if by_id else _RATE
    if not by_id:
        config.train.factor_steps = 0
    config.objective.response_penalty = _rounded(1 / choices)
    config.objective.text_penalty = 0.0
    if known and not by_id:
        config.objective.text_penalty = _rounded(3 / choices) if name == "hybrid" else _ONLY_FEATURES
    return config


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def needs_choice(work: Workdir) -> bool:
    """Whether the configuration leaves the choice to validation people, and none was made yet."""
    return getattr(work.config, "auto", "no") == "yes" and "chosen" not in work.run


def choose(work: Workdir, trained: Mapping[str, PyTree], stop: StopSignal) -> Workdir:
    """Fits the candidates, writes the choice to config.json and run.json; the main model goes on from its fit, if any.

    Args:
      work: a work directory whose population model is trained.
      trained: its trained models.
      stop: see `fit`.
    """
    options = candidates(work.config, work.dataset)
    folds = folds_of_few(work.dataset, work.config.data.split_seed)
    if folds is None:
        scores = {name: _score(work, name, config, trained, stop) for name, config in options.items()}
    else:
        held_out = HeldOut.of(folds.people, work.config.evaluate.k, reads=True)
        scores = {name: _score_on_folds(work, config, folds, held_out, stop) for name, config in options.items()}
    chosen = min(scores, key=lambda name: scores[name])
    listed = ", ".join(f"{name} {nll:.4f}" for name, nll in scores.items())
    people = len((folds.people if folds else work.dataset.splits["val"]).users)
    _log.info("chosen on %d people: %s (NLL after %d steps: %s)", people, chosen, _STEPS, listed)
    facts = {
        "name": chosen,
        "nll": scores,
        "steps": _STEPS,
        "people": people,
        "folds": len(folds.datasets) if folds else 1,
    }
    if options[chosen].optim.final_fraction == 1:  # the learning rates do not depend on the number of steps
        for part in ("checkpoints", "metrics.jsonl", "tensorboard"):
            if (source := work.path / "choice" / chosen / part).exists():
                shutil.rmtree(work.path / part, ignore_errors=True)
                source.replace(work.path / part)
    write_settings(work.path, options[chosen], read_run(work.path) | {"chosen": facts})
    shutil.rmtree(work.path / "choice", ignore_errors=True)
    return Workdir(work.path, RewardTask(options[chosen], work.dataset))


def _score(work: Workdir, name: str, config: RewardConfig, trained: Mapping[str, PyTree], stop: StopSignal) -> float:
    """The NLL of the validation people after a short fit, which is kept."""
    short = dataclasses.replace(config.train, steps=min(_STEPS, config.train.steps), patience=0)
    short.checkpoint_every = short.validate_every
    one = Workdir(work.path / "choice" / name, RewardTask(dataclasses.replace(config, train=short), work.dataset))
    fit(one, MAIN, trained, stop)
    best = Checkpoints(one.path / "checkpoints" / "best", 1, read_only=True)
    return min((best.metrics(step).get("nll", np.inf) for step in best.steps), default=np.inf)


def _score_on_folds(work: Workdir, config: RewardConfig, folds: Folds, held_out: HeldOut, stop: StopSignal) -> float:
    """The NLL of everybody but the test people, each predicted by a short fit without them."""
    fits = FoldFits(config, stop)
    populations = fits.population(folds, work.best_step(POPULATION))
    mains = fits.main(folds, min(_STEPS, config.train.steps), populations)
    scores, _ = held_out.scores(folds.predictor(config, MAIN, mains))
    return scores["val/nll"]
