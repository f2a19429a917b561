"""Decides how a reward model is regularised, represents texts and people, and how long it trains, from the data.

With `config.auto=yes` the following are decided, and nothing else, by the NLL of people who were not trained on: the
validation people, or all but the test people in folds (experiment/folds.py).

1. The population model, after `POPULATION_STEPS` steps: the weight of the penalty on its linear part, of `_POPULATION`
   per choice in training; then, for known texts, that of the penalty on what is learnt per text, of `_PER_TEXT` per
   choice, which is the middle one of these before; and then that on the linear part again. Each is the best of these,
   of further ones outside while the first or the last is best, and of those half-way to its neighbours.
2. The main model: one of the candidates below, each with the penalties on its representation of texts times one of
   `_STRENGTHS`, after one of `_STEPS` steps.
   * texts: a learnt embedding per text, from a matrix factorisation; a choice is a liked and a disliked response. For
     known texts and choices between two.
   * ids: a learnt embedding per text; a choice is a comparison, as in all that follow. For known texts, and lists or
     levels of ratings.
   * hybrid: linear in the features, plus a learnt embedding that is shrunk to 0. For known texts.
   * features: linear in the features.
   * kinds: the same, and people are of `_KINDS` kinds.
3. Whether several candidates are averaged: the weights are those that predict these people best (stacking), of at
   most `_MOST_PARTS`, each at least `_LEAST_SHARE`. Where that is better than the best candidate by less than one
   standard error over people, or by less than `_LEAST_GAIN` nats per choice, the best candidate is trained alone.
4. In folds: the number of steps, the best multiple of `_STRIDE`, until the NLL did not improve for as long as
   `config.train.patience` says. Otherwise the training ends by itself (`config.train.patience`).

Texts are known if `config.model.learn_texts` was resolved to yes. A penalty of 1 per choice is a standard normal prior
on each weight.
"""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from fssa_jax.config import BayesEncoder, DiscretePrior, NpBtl, Part, RewardConfig, RewardTraining
from fssa_jax.data.dataset import Dataset, has_lists, seen_in_training
from fssa_jax.evaluate.held_out import HeldOut
from fssa_jax.evaluate.stacking import mixed, stack
from fssa_jax.experiment.folds import CALL, POPULATION_STEPS, FoldFits
from fssa_jax.experiment.workdir import Workdir, read_run, write_settings
from fssa_jax.tasks.reward import RewardTask
from fssa_jax.tasks.task import MAIN, POPULATION

_log = logging.getLogger(__name__)

_POPULATION, _PER_TEXT = (0.1, 1.0, 10.0, 100.0), (0.4, 1.6, 6.4)
_POPULATION_FACTOR, _BEYOND = 10.0, 3
_STRIDE = 50  # steps between predictions of short fits
_STEPS, _STRENGTHS = (50, 100, 150), (1.0, 10.0)
_WIDTH, _TEXTS_WIDTH, _KINDS = 16, 64, 64
_RATE, _TEXTS_RATE = 1e-2, 3e-3
_LEAST_SHARE, _MOST_PARTS, _LEAST_GAIN = 0.1, 3, 5e-4
_ONLY_FEATURES = 1.0  # weight of the penalty that keeps learnt embeddings at 0


def candidates(config: RewardConfig, dataset: Dataset) -> dict[str, RewardConfig]:
    """The configurations among which `choose` decides, by name; see above."""
    known = config.model.learn_texts == "yes"
    names = ["features", "kinds"]
    if known:
        # A like or a dislike says nothing of which of several thresholds a rating passed.
        compared = has_lists(dataset) or dataset.thresholds.sum() > 1
        names = ["ids" if compared else "texts", "hybrid", *names]
    out = {}
    # What n texts are to people has n dimensions at most.
    width = max(min(_TEXTS_WIDTH, int(seen_in_training(dataset).sum())), _WIDTH)
    for name in names:
        for strength in _STRENGTHS[:1] if name in ("texts", "ids") else _STRENGTHS:
            label = name if strength == 1 else f"{name} × {strength:g}"
            option = _candidate(copy.deepcopy(config), name, strength, known, _choices(dataset))
            option.model.width = width if name in ("texts", "ids") else _WIDTH
            out[label] = option
    return out


def _candidate(config: Any, name: str, strength: float, known: bool, choices: int) -> RewardConfig:
    by_id = name in ("texts", "ids")
    config.model.response = "none" if by_id else "linear"
    config.model.members, config.model.parts = 1, ()  # the fits that decide are of single models
    config.model.encoder.observations = ("responses",) if name == "texts" else ("difference",)
    if name == "kinds":
        config.model.encoder.prior = DiscretePrior(_KINDS)
    config.optim.learning_rate = _TEXTS_RATE if by_id else _RATE
    if not by_id:
        config.train.factor_steps = 0
    config.objective.response_penalty = _rounded(strength / choices)
    config.objective.text_penalty = 0.0
    if known and not by_id:
        config.objective.text_penalty = _rounded(3 * strength / choices) if name == "hybrid" else _ONLY_FEATURES
    return config


def _choices(dataset: Dataset) -> int:
    return max(int(np.asarray(dataset.splits["train"].table.count).sum()), 1)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def needs_choice(work: Workdir) -> bool:
    """Whether the configuration leaves the choice to validation people, and none was made yet."""
    return getattr(work.config, "auto", "no") == "yes" and "chosen" not in work.run


def choose(work: Workdir, fits: FoldFits) -> Workdir:
    """Decides, and writes the decisions to config.json and run.json, with the scores they rest on.

    Args:
      work: a work directory in which nothing is trained yet.
      fits: of the people who decide.
    """
    config, scores = _with_population(work, fits)
    held_out = HeldOut.of(fits.folds.people, config.evaluate.k, reads=True)

    def log_p(candidate: RewardConfig, steps: int) -> np.ndarray:
        return held_out.log_p(fits.predictor(candidate, MAIN, fits.main(candidate, steps)))

    options, found = candidates(config, work.dataset), dict[str, _Found]()
    for name, option in options.items():
        for steps in sorted({min(number, config.train.steps) for number in _STEPS}):
            predicted = log_p(option, steps)
            nll = _nll(predicted, held_out)
            if name not in found or nll < found[name].nll:
                found[name] = _Found(nll, steps, predicted)
    name = min(found, key=lambda name: found[name].nll)
    chosen, shares = options[name], {name: 1.0}
    stacked = _shares(found, held_out.weight)
    if len(stacked) > 1:
        averaged = _averaged(options, stacked)
        # Scored as it will be trained: for one number of steps, and with the means of scales and lapses.
        log_p_of = [log_p(averaged, steps) for steps in sorted({one.steps for one in found.values()})]
        best = min(log_p_of, key=lambda each: _nll(each, held_out))
        if _is_better(best, found[name].log_p, held_out.weight):
            chosen, shares = averaged, stacked
    if isinstance(work.config.model, NpBtl) and isinstance(chosen.model, NpBtl):
        chosen.model = replace(chosen.model, members=work.config.model.members)
    facts = {
        "people": len(fits.folds.people.users),
        "folds": len(fits.folds),
        "population": scores,
        "name": " + ".join(shares),
        "shares": shares,
        "nll": {name: one.nll for name, one in found.items()},
        "after": {name: one.steps for name, one in found.items()},
    }
    listed = ", ".join(f"{name} {one.nll:.4f}" for name, one in found.items())
    said = "decided by the NLL of %d people who were not trained on: %s (%s)"
    _log.info(said, facts["people"], facts["name"], listed)
    if len(fits.folds) > 1:

        def score(steps: int) -> float:
            return _nll(log_p(chosen, steps), held_out)

        facts["steps"], facts["most_steps"] = _length(config.train, score), chosen.train.steps
        train, calls = chosen.train, -(-facts["steps"] // chosen.train.steps_per_call)
        # Validated at the end alone, so that a few validation people do not choose another step.
        train.steps, train.validate_every, train.patience = facts["steps"], calls * train.steps_per_call, 0
        train.population_steps = POPULATION_STEPS
        _log.info("decided in the same way: %d steps", facts["steps"])
        if facts["steps"] >= facts["most_steps"]:
            _log.warning("the best number of steps is the largest one allowed; give more (config.train.steps)")
    write_settings(work.path, chosen, read_run(work.path) | {"chosen": facts})
    return Workdir(work.path, RewardTask(chosen, work.dataset))


def _with_population(work: Workdir, fits: FoldFits) -> tuple[RewardConfig, dict[str, float]]:
    """The configuration with the penalties of the population model, and the NLL with each."""
    held_out = HeldOut.of(fits.folds.people, (0,), reads=False)
    known, choices = work.config.model.learn_texts == "yes", _choices(work.dataset)
    scores = dict[str, float]()

    def penalised(linear: float, per_text: float) -> RewardConfig:
        config = copy.deepcopy(work.config)
        config.objective.population_penalty = _rounded(linear / choices)
        config.objective.text_bias_penalty = _rounded(per_text / choices)
        return config

    def nll(linear: float, per_text: float) -> float:
        name = f"{linear:g}, {per_text:g} per text" if known else f"{linear:g}"
        if name not in scores:
            config = penalised(linear, per_text)
            predictor = fits.predictor(config, POPULATION, fits.population(config))
            scores[name] = _nll(held_out.log_p(predictor), held_out)
        return scores[name]

    per_text = _PER_TEXT[1]
    linear = _best(_POPULATION, lambda each: nll(each, per_text))
    if known:
        per_text = _best(_PER_TEXT, lambda each: nll(linear, each))
        # What is learnt per text takes over from the features, or leaves more to them.
        around = (_rounded(linear / _POPULATION_FACTOR), linear, _rounded(linear * _POPULATION_FACTOR))
        linear = _best(around, lambda each: nll(each, per_text))
    return penalised(linear, per_text), scores


def _best(values: Sequence[float], score: Callable[[float], float]) -> float:
    """The value with the lowest score, of equidistant ones in logarithms.

    While the best is the first or the last, the next one outside is tried, at most `_BEYOND` times; then the two
    half-way to its neighbours.
    """
    factor, found = values[1] / values[0], {value: score(value) for value in values}

    def add(value: float) -> float:
        found.setdefault(value, score(value))
        return min(found, key=lambda each: found[each])

    best = min(found, key=lambda each: found[each])
    for _ in range(_BEYOND):
        if best not in (min(found), max(found)):
            break
        best = add(_rounded(best / factor if best == min(found) else best * factor))
    for half in (best / factor**0.5, best * factor**0.5):
        add(_rounded(half))
    return min(found, key=lambda each: found[each])


class _Found(NamedTuple):
    """The best short fit of a candidate: its NLL, its steps, and its predictions (ks, people, targets)."""

    nll: float
    steps: int
    log_p: np.ndarray


def _shares(found: Mapping[str, _Found], weight: np.ndarray) -> dict[str, float]:
    """The weights of the candidates to average, the largest first; of the best one alone, 1."""
    names = sorted(found, key=lambda name: found[name].nll)
    log_p = np.stack([found[name].log_p for name in names])
    shares = stack(log_p, weight)
    kept = [i for i in np.argsort(-shares, kind="stable")[:_MOST_PARTS] if shares[i] >= _LEAST_SHARE]
    kept = [i for i, share in zip(kept, stack(log_p[kept], weight), strict=True) if share >= _LEAST_SHARE] or kept[:1]
    shares = stack(log_p[kept], weight)
    if len(kept) < 2 or not _is_better(mixed(log_p[kept], shares), log_p[0], weight):
        return {names[0]: 1.0}
    pairs = sorted(zip(kept, shares, strict=True), key=lambda pair: -pair[1])
    return {names[i]: _rounded(share) for i, share in pairs}


def _is_better(log_p: np.ndarray, other: np.ndarray, weight: np.ndarray) -> bool:
    """Whether predictions gain more than `_LEAST_GAIN` and one standard error over people, who are independent."""
    gains = ((log_p - other) * weight).sum(-1).mean(0)
    error = gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else np.inf
    return bool(gains.mean() > max(error, _LEAST_GAIN))


def _averaged(options: Mapping[str, RewardConfig], shares: Mapping[str, float]) -> RewardConfig:
    """The configuration of an average of candidates: that of the first one, with the parts."""
    parts = []
    for name, share in shares.items():
        config, model = options[name], options[name].model
        assert isinstance(model, NpBtl)
        assert isinstance(model.encoder, BayesEncoder)
        parts.append(
            Part(
                weight=share,
                response=model.response,
                width=model.width,
                observations=model.encoder.observations,
                prior=model.encoder.prior,
                learning_rate=config.optim.learning_rate,
                factor_steps=config.train.factor_steps,
                response_penalty=config.objective.response_penalty,
                text_penalty=config.objective.text_penalty,
            )
        )
    chosen = copy.deepcopy(options[next(iter(shares))])
    chosen.model = replace(chosen.model, parts=tuple(parts))
    return chosen


def _nll(log_p: np.ndarray, held_out: HeldOut) -> float:
    nll = -float((log_p * held_out.weight).sum(-1).mean())
    if not np.isfinite(nll):
        # NaN is neither smaller nor larger than anything: a fit that diverged must lose.
        _log.warning("a short fit diverged (its NLL is %s), so its settings are not chosen", nll)
        return float(np.finfo(np.float32).max)
    return nll


def _length(train: RewardTraining, score: Callable[[int], float]) -> int:
    """The best number of steps, a multiple of `_STRIDE`; ends as `config.train.patience` says."""
    best, best_steps, steps = np.inf, _STRIDE, 0
    while steps < train.steps and steps - best_steps < max(train.patience * CALL, _STRIDE):
        steps = min(steps + _STRIDE, train.steps)
        nll = score(steps)
        if nll < best:
            best, best_steps = nll, steps
    return best_steps
