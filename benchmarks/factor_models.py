"""References that a model of people is compared with: a factor model fitted by MAP, and the mixed logit.

In both a response y has the reward r(y) = s(y) + ⟨f(y), z⟩ for a person z, and a choice among the responses y₁ … y_n
has the probability softmax(r)_chosen: the logit model, Bradley-Terry-Luce if n = 2.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from benchmarks.people_data import normal_points
from fssa_jax.errors import UserError
from fssa_jax.ops.choices import per_choice, real_responses, responses_of
from fssa_jax.ops.episodes import truncate_context
from fssa_jax.types import ChoiceTable, Comparisons, Episode

try:
    import xlogit
except ImportError:  # xlogit is not a requirement
    xlogit = None

_NO_OFFER = -1e30
_NEWTON_STEPS = 8


class Observed(NamedTuple):
    """Choices in one row, by user: user (n,), ids of the responses (n, r), the chosen one first, and which are real."""

    user: np.ndarray
    texts: np.ndarray
    listed: np.ndarray


def observed(table: ChoiceTable) -> Observed:
    """All choices of a table."""
    real = np.asarray(table.mask)
    sides = [np.asarray(table.chosen)[real], np.asarray(table.rejected)[real]]
    texts = np.stack(sides, axis=-1)
    if table.others is not None:
        texts = np.concatenate([texts, np.asarray(table.others)[real]], axis=-1)
    user = np.broadcast_to(np.arange(len(real))[:, None, None], real.shape)[real]
    return Observed(user, np.maximum(texts, 0), texts >= 0)


def offered_texts(choices: Comparisons) -> tuple[Array, Array]:
    """Ids of the responses of choices, the chosen one first, and which of them are real: (*batch, n, r)."""
    return per_choice(responses_of(choices), choices), real_responses(choices)


def log_choice(rewards: Array, listed: Array) -> Array:
    """log softmax of rewards (*batch, r) among the responses that were offered."""
    return jax.nn.log_softmax(jnp.where(listed, rewards, _NO_OFFER), axis=-1)


def factorisations(
    seed: int,
    table: ChoiceTable,
    start: np.ndarray,
    *,
    basis: np.ndarray | None = None,
    width: int = 32,
    precision: float = 4.0,
    every: int = 120,
) -> Iterator[tuple[Array, Array]]:
    """Rewards s (texts,) and factors f (texts, width) after every so many steps of Adam on

        −Σ_u (20 / n_u) Σ_i log p(i | z_u) + ½ Σ_u |z_u|² + ½ λ |V|² + ½ |b|²

    with f = V and s = start + b, or f = X V and s = start + X b for features X: joint maximum a posteriori, as in
    probabilistic matrix factorisation (Salakhutdinov and Mnih 2007), of choices. Rows weigh inversely to their user's
    number. Texts that no row judges have no factors.

    Args:
      seed: of the first V and z.
      table: choices of training users.
      start: the population's rewards (texts,), which s stays close to.
      basis: features X (texts, d) for texts that are new; None for factors of each text.
      width: of the factors.
      precision: λ.
      every: steps between two results.
    """
    rows = observed(table)
    users = len(table.chosen)
    seen = np.zeros((len(start), 1), np.float32)
    seen[rows.texts[rows.listed]] = 1
    keys = jax.random.split(jax.random.key(seed))
    height = len(start) if basis is None else basis.shape[1]
    params = {
        "V": 0.1 * jax.random.normal(keys[0], (height, width)),
        "z": 0.1 * jax.random.normal(keys[1], (users, width)),
        "b": jnp.zeros(height),
    }
    weight = (20 / np.maximum(np.bincount(rows.user, minlength=users), 1))[rows.user].astype(np.float32)
    data = jax.tree.map(jnp.asarray, (rows, weight, np.asarray(start, np.float32), basis, seen))

    def rewards(p: Any, data: Any) -> tuple[Array, Array]:
        _, _, start, basis, seen = data
        return (start + p["b"], p["V"] * seen) if basis is None else (start + basis @ p["b"], basis @ p["V"])

    def loss(p: Any, data: Any) -> Array:
        (user, texts, listed), weight, *_ = data
        s, f = rewards(p, data)
        reward = s[texts] + jnp.einsum("nrm,nm->nr", f[texts], p["z"][user])
        prior = (p["z"] ** 2).sum() + precision * (p["V"] ** 2).sum() + (p["b"] ** 2).sum()
        return (-(weight * log_choice(reward, listed)[:, 0]).sum() + 0.5 * prior) / user.shape[0]

    optimizer = optax.adam(3e-2)

    @jax.jit
    def fit(carry: Any, data: Any) -> Any:
        def update(carry: Any, _: None) -> tuple[Any, None]:
            p, state = carry
            updates, state = optimizer.update(jax.grad(loss)(p, data), state)
            return (optax.apply_updates(p, updates), state), None

        carry, _ = jax.lax.scan(update, carry, None, length=every)
        return carry, rewards(carry[0], data)

    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        carry = params, optimizer.init(params)
        while True:
            carry, found = fit(carry, data)
            yield found


def joint_factorisation(seed: int, table: ChoiceTable, start: np.ndarray) -> tuple[Array, Array]:
    """`factorisations` of texts after 120 steps: settings that were tuned on validation users of Polis."""
    return next(factorisations(seed, table, start))


@jax.jit
def map_log_p(s: Array, f: Array, episode: Episode, k: Array | int) -> Array:
    """log p (users, targets, r) of the offered responses, the chosen one first, at each user's posterior mode of z.

    The mode after k choices is found by Newton's method, whose Hessian is I + Σ_i Cov_p(f), p the probabilities of the
    responses of choice i.
    """
    context = truncate_context(episode, k).context
    ids, listed = offered_texts(context)
    mask = context.mask.astype(s.dtype)
    prior = jnp.broadcast_to(jnp.eye(f.shape[-1]), (mask.shape[0], f.shape[-1], f.shape[-1]))

    def newton(z: Array, _: None) -> tuple[Array, None]:
        p = jnp.exp(log_choice(s[ids] + jnp.einsum("unrm,um->unr", f[ids], z), listed))
        mean = jnp.einsum("unr,unrm->unm", p, f[ids])
        centred = f[ids] - mean[:, :, None]
        hessian = prior + jnp.einsum("unr,unri,unrj->uij", p * mask[..., None], centred, centred)
        gradient = jnp.einsum("un,unm->um", mask, f[ids[..., 0]] - mean) - z
        return z + jnp.linalg.solve(hessian, gradient[..., None])[..., 0], None

    z, _ = jax.lax.scan(newton, jnp.zeros((mask.shape[0], f.shape[-1])), None, length=_NEWTON_STEPS)
    ids, listed = offered_texts(episode.targets)
    return log_choice(s[ids] + jnp.einsum("utrm,um->utr", f[ids], z), listed)


class FactorModel(NamedTuple):
    """A factor model and the settings that validation users chose."""

    rewards: Array
    factors: Array
    settings: dict[str, Any]


def tuned_factor_model(
    seed: int,
    table: ChoiceTable,
    start: np.ndarray,
    bases: dict[str, np.ndarray | None],
    validation: Episode,
    ks: Sequence[int],
) -> FactorModel:
    """The `factorisations` with the lowest NLL of validation users, a mean over all k.

    First the basis, then the precision, then the width, and in each fit the number of steps. A fit ends when
    its NLL rises.

    Args:
      seed, table, start: see `factorisations`.
      bases: by name, features of texts, or None for factors of each text.
      validation: episodes of validation users.
      ks: numbers of choices.
    """
    mask = validation.targets.mask

    def nll(s: Array, f: Array) -> float:
        total = sum(jnp.where(mask, map_log_p(s, f, validation, jnp.asarray(k))[..., 0], 0).sum(-1) for k in ks)
        return float(-(total / jnp.maximum(mask.sum(-1), 1).astype(jnp.float32)).mean() / len(ks))

    def fitted(settings: dict[str, Any]) -> tuple[float, FactorModel]:
        size = {"width": settings["width"], "precision": settings["precision"]}
        best, every = None, 40
        path = factorisations(seed, table, start, basis=bases[settings["basis"]], every=every, **size)
        for number, (s, f) in enumerate(path, 1):
            score = nll(s, f)
            if best is not None and not score < best[0] - 1e-4:
                break
            best = score, FactorModel(s, f, settings | {"steps": number * every, "validation_nll": round(score, 4)})
        assert best is not None
        return best

    found: dict[str, tuple[float, FactorModel]] = {}
    best = {"basis": "", "precision": 4.0, "width": 32}
    for name, values in (("basis", list(bases)), ("precision", [1.0, 16.0, 64.0]), ("width", [8])):
        options = [best] if best["basis"] else []
        options += [best | {name: value} for value in values]
        for settings in options:
            if str(settings) not in found:
                found[str(settings)] = fitted(settings)
        best = min(options, key=lambda settings: found[str(settings)][0])
    return found[str(best)][1]


@partial(jax.jit, static_argnames=("ks", "lapse"))
def point_log_p(s: Array, f: Array, points: Array, episode: Episode, ks: tuple[int, ...], lapse: float = 0.0) -> Array:
    """log p(response | first k choices), (ks, users, targets, r), the chosen response first, for z among points.

    p(t | C) = Σ_s w_s p(t | z_s),   w_s ∝ Π_{i in C} p(i | z_s)

    With draws from a fitted mixing distribution this is the prediction of a mixed logit for a person whose earlier
    choices are known (Revelt and Train 2000, eq. 5; Train 2009, section 11.3), and with all possible people the Bayes
    limit.

    Args:
      s, f: rewards (texts,) and factors (texts, m).
      points: equally probable values of z, (points, m).
      episode: contexts and targets of users, ids of texts.
      ks: numbers of choices.
      lapse: probability of the opposite choice, for choices between two.
    """

    def probability(choices: Comparisons) -> Array:
        """(n, r, points)."""
        ids, listed = offered_texts(choices)
        rewards = s[ids][..., None] + f[ids] @ points.T
        p = jax.nn.softmax(jnp.where(listed[..., None], rewards, _NO_OFFER), axis=-2)
        return (1 - lapse) * p + lapse * (1 - p)

    def of_user(both: tuple[Comparisons, Comparisons]) -> Array:
        context, targets = both
        evidence = jnp.log(jnp.maximum(probability(context)[:, 0], jnp.finfo(s.dtype).tiny))
        read = jnp.arange(context.mask.shape[0])[None] < jnp.asarray(ks)[:, None]
        weights = jax.nn.softmax((read & context.mask[None]).astype(s.dtype) @ evidence, axis=-1)
        p = jnp.einsum("ks,trs->ktr", weights, probability(targets))
        return jnp.log(jnp.maximum(p, jnp.finfo(s.dtype).tiny))

    return jnp.moveaxis(jax.lax.map(of_user, (episode.context, episode.targets)), 0, 1)


def principal_columns(features: np.ndarray, seen: np.ndarray, most: int = 8) -> np.ndarray:
    """At most `most` standardised columns of features: these themselves, or else their first principal components.

    Args:
      features: (texts, d).
      seen: which texts the mean, the components and the scales are taken from.
    """
    centred = np.asarray(features, np.float64) - np.asarray(features, np.float64)[seen].mean(0)
    if centred.shape[1] > most:
        _, _, directions = np.linalg.svd(centred[seen], full_matrices=False)
        centred = centred @ directions[:most].T
    scale = centred[seen].std(0)
    kept = scale > 1e-6 * max(scale.max(), 1e-12)
    return (centred[:, kept] / scale[kept]).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class MixedLogit:
    """A fitted mixed logit: r(y) = scale · s(y) + ⟨x(y), β⟩, β ~ N(mean, diag(deviation²)) over people."""

    scale: float
    mean: np.ndarray
    deviation: np.ndarray
    facts: dict[str, Any]

    def log_p(
        self, rewards: np.ndarray, columns: np.ndarray, episode: Episode, ks: tuple[int, ...], draws: int = 2048
    ) -> Array:
        """See `point_log_p`; the points are draws of β."""
        beta = self.mean + self.deviation * normal_points(draws, len(self.mean))
        s, x, points = (jnp.asarray(part, jnp.float32) for part in (self.scale * rewards, columns, beta))
        return point_log_p(s, x, points, episode, ks)


def fit_mixed_logit(
    seed: int,
    table: ChoiceTable,
    rewards: np.ndarray,
    columns: np.ndarray,
    most_rows: int = 8000,
    most_draws: int = 500,
) -> MixedLogit:
    """A mixed logit with normal, independent coefficients of people, by simulated maximum likelihood (xlogit).

    L(θ) = Π_u (1/R) Σ_r Π_i p(i | β_ur),   β_ur = mean + deviation · draw_ur         (Train 2009, section 6.6)

    The draws are Halton's. s(y) has a fixed coefficient, unless the columns imply it. If the likelihood has no maximum,
    half of the columns are left out, the last ones.

    Args:
      seed: of the users who are fitted.
      table: choices of training users.
      rewards: s (texts,), of the population.
      columns: x (texts, d).
      most_rows: users are taken at random until they have so many rows.
      most_draws: R; fewer, but at least 100, where rows and columns are many.

    Raises:
      UserError: xlogit is not installed.
    """
    if xlogit is None:
        raise UserError(
            "--mixed_logit: needs xlogit; pip install --no-deps xlogit==0.2.7, or leave it out with --nomixed_logit"
        )
    rows = observed(table)
    count = np.bincount(rows.user, minlength=len(table.chosen))
    order = np.random.default_rng(seed).permutation(np.flatnonzero(count))
    taken = order[: max(int(np.searchsorted(count[order].cumsum(), most_rows, side="right")), 1)]
    mine = np.isin(rows.user, taken)
    user, texts, listed = (part[mine] for part in rows)
    texts = np.where(listed, texts, texts[:, :1])
    free, unit = _not_implied(rewards, columns), max(float(rewards.std()), 1e-6)
    shared = (rewards / unit)[texts][..., None].astype(np.float64)[..., : int(free)]
    n, r = texts.shape
    d = columns.shape[1]
    while True:  # few people may be told apart by many columns: then there is no maximum
        names = [f"x{i}" for i in range(d)]
        draws = min(max(int(2e7 / (n * d)), 100), most_draws)
        model = xlogit.MixedLogit()
        x = np.concatenate([columns[texts][..., :d].astype(np.float64), shared], axis=-1)
        try:
            with np.errstate(all="ignore"):  # steps of the line search that are too long
                model.fit(
                    X=x.reshape(n * r, -1),
                    y=np.tile(np.arange(r) == 0, n).astype(int),
                    varnames=[*names, "s"] if free else names,
                    alts=np.tile(np.arange(r), n),
                    ids=np.repeat(np.arange(n), r),
                    panels=np.repeat(user, r),
                    avail=None if listed.all() else listed.reshape(-1).astype(int),
                    randvars=dict.fromkeys(names, "n"),
                    n_draws=draws,
                    maxiter=200,
                    skip_std_errs=True,
                    verbose=0,
                )
            if np.isfinite(model.coeff_).all():
                break
        except np.linalg.LinAlgError:
            pass
        if d == 1:
            raise UserError(f"--mixed_logit: no maximum of the likelihood of {len(taken)} people; use --nomixed_logit")
        d //= 2
    coefficients = np.asarray(model.coeff_, np.float64)
    facts = {
        "people": len(taken),
        "of_people": int((count > 0).sum()),
        "rows": int(n),
        "columns": d,
        "population_reward": free,
        "draws": draws,
        "iterations": int(model.total_iter),
        "converged": bool(model.convergence),
        "log_likelihood_per_row": round(float(model.loglikelihood) / n, 4),
    }
    mean, deviation = np.zeros((2, columns.shape[1]))
    mean[:d], deviation[:d] = coefficients[:d], np.abs(coefficients[-d:])
    return MixedLogit(float(coefficients[d]) / unit if free else 0.0, mean, deviation, facts)


def _not_implied(rewards: np.ndarray, columns: np.ndarray) -> bool:
    """Whether rewards are no linear function of the columns."""
    design = np.concatenate([columns, np.ones((len(columns), 1))], axis=1).astype(np.float64)
    left = rewards - design @ np.linalg.lstsq(design, rewards.astype(np.float64), rcond=None)[0]
    return bool(left.std() > 1e-3 * max(rewards.std(), 1e-6))
