"""The evaluation of a policy: what it implies about choices, and what it writes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax.config.policy import PolicyEvaluateConfig
from fssa_jax.data.dataset import Split, Truth
from fssa_jax.evaluate.controls import contradicted_context, scrambled_context
from fssa_jax.evaluate.evaluate import Evaluation, Predictor, evaluate
from fssa_jax.evaluate.in_context import in_context_predictor
from fssa_jax.evaluate.policy_scores import PolicyScorer
from fssa_jax.evaluate.written import written_for
from fssa_jax.experiment.policy_workdir import PolicyWorkdir
from fssa_jax.experiment.trained_policy import TrainedPolicy, episodes_of, latents
from fssa_jax.ops.episodes import truncate_context
from fssa_jax.ops.metrics import bayes_log_posterior
from fssa_jax.train.roles import Role
from fssa_jax.types import Comparisons, Episode

_STILL = 1e-6  # a latent that nothing moves farther than this has collapsed, which is said elsewhere


@dataclasses.dataclass
class PolicyEvaluation:
    """report.json as a dictionary, and what pictures and pages need beside it."""

    report: dict[str, Any]
    choices: Evaluation
    written: dict[str, Any]  # samples side by side, and the continuum


def evaluate_policy(
    work: PolicyWorkdir, split: Split, settings: PolicyEvaluateConfig, policies: dict[Role, TrainedPolicy]
) -> PolicyEvaluation:
    """Scores a policy and everything beside it on the same users, targets and contexts, then has it write.

    Raises:
      UserError: the largest k is larger than any user's context.
    """
    data = _data_of(work, split)
    main = policies["main"]
    others: dict[str, TrainedPolicy] = {role: policy for role, policy in policies.items() if role != "main"}

    def predictor(policy: TrainedPolicy | None) -> Predictor | None:
        if policy is None:
            return None
        return PolicyScorer(policy.conditioner, work.base.decoder, data, work.config.objective).predictor(
            policy.variables
        )

    own = predictor(main)
    assert own is not None
    population = predictor(others.get("population")) or (own if main.conditioner.latent == "none" else None)
    result = evaluate(
        own,
        split,
        work.dataset,
        settings,
        population=population,
        oracle=predictor(others.get("oracle")),
        seed=work.config.seed,
        max_users=settings.users,
        max_targets=settings.targets,
        scramble=True,
    )
    report = result.report
    report["step"] = main.step
    if settings.in_context_users:
        # Of few people, for it is dear; the policy itself is scored on the same ones.
        for name, asked in (("in_context", in_context_predictor(work, data)), ("in_context_own", own)):
            few = evaluate(
                asked,
                split,
                work.dataset,
                settings,
                seed=work.config.seed,
                max_users=settings.in_context_users,
                max_targets=min(settings.targets, 8),
                control=False,
            ).report
            report[name], report[f"{name}_steering"] = few["accuracy"], few["steering"]
            report["users"]["in_context"] = few["users"]["scored"]
    written: dict[str, Any] = {}
    if main.conditioner.latent == "context":
        report["latent"] |= drift(work, split, main, result.users, settings)
    if settings.generate.people:
        report["generation"], written = written_for(work, split, policies, result.users, settings)
    return PolicyEvaluation(report, result, written)


def _data_of(work: PolicyWorkdir, split: Split):
    return dataclasses.replace(work.data("test"), choices=jax.tree.map(jnp.asarray, split.table))


def drift(
    work: PolicyWorkdir, split: Split, main: TrainedPolicy, users: np.ndarray, settings: PolicyEvaluateConfig
) -> dict[str, Any]:
    """Whether z reads choices or counts them: |z| by k, of four kinds of contexts.

    * norm: people's own. The mean of a posterior moves away from its prior as evidence comes in.
    * norm_scrambled: every choice is another person's. These too look like somebody's, the more so the fewer they are.
    * norm_contradicted: each choice stands beside its reverse (k rounded up to an even number).
    * bayes, bayes_scrambled, where the limit is known: how far the first two move the exact posterior, as the root mean
      square over texts of E[r(y) | C] − E[r(y)], in nats. Where |z| grows as this does, it tracks what is known.

    `counted` is how far contradicting choices move z from where it is without any, of how far a person's own do, at the
    largest k: 0 for who reads choices, towards 1 for who counts them. Only where choices are read without a population
    model: beside one, to be undecided is news.
    """
    features = work.data("test").features
    episodes = episodes_of(work, split, users, settings)
    mixed = dataclasses.replace(episodes, context=scrambled_context(episodes.context, work.config.seed))
    against = dataclasses.replace(episodes, context=contradicted_context(episodes.context))
    ks, most = sorted(set(settings.k)), max(settings.k)

    def norms(these: Episode, even: bool = False) -> dict[str, float]:
        found = {str(k): latents(main, these, features, k + (k % 2 if even else 0)) for k in ks}
        return {k: float(np.linalg.norm(z, axis=-1).mean()) for k, z in found.items()}

    out: dict[str, Any] = {
        "norm": norms(episodes),
        "norm_scrambled": norms(mixed),
        "norm_contradicted": norms(against, even=True),
    }
    nothing = latents(main, episodes, features, 0)
    moved, counted = (
        float(np.linalg.norm(latents(main, these, features, k) - nothing, axis=-1).mean())
        for these, k in ((episodes, most), (against, most + most % 2))
    )
    if work.config.model.population == "none" and moved > _STILL:
        out["counted"] = counted / moved
    truth = work.dataset.truth
    if truth is not None:
        for name, these in (("bayes", episodes), ("bayes_scrambled", mixed)):
            out[name] = {str(k): _posterior_shift(truth, truncate_context(these, k).context) for k in ks}
    return out


def _posterior_shift(truth: Truth, context: Comparisons) -> float:
    """Mean over people of √(mean over texts of (E[r(y) | C] − E[r(y)])²), in nats, by the exact posterior."""
    rewards = jnp.asarray(truth.rewards)
    evidence = rewards[context.chosen] - rewards[context.rejected]
    posterior = np.exp(bayes_log_posterior(evidence, context.mask, jnp.asarray(truth.log_prior)))
    shift = (posterior - np.exp(truth.log_prior)) @ truth.rewards.T
    return float(np.sqrt((shift**2).mean(-1)).mean())
