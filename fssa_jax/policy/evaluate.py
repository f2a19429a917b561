"""The evaluation of a policy: what it implies about choices, and what it writes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax import roles
from fssa_jax.controls import contradicted_context, scrambled_context
from fssa_jax.data import styles
from fssa_jax.data.dataset import Split, Truth
from fssa_jax.episodes import truncate_context
from fssa_jax.errors import UserError
from fssa_jax.evaluate import Evaluation, Predictor, evaluate, first_users
from fssa_jax.metrics import bayes_log_posterior
from fssa_jax.policy.conditioner import Conditioner
from fssa_jax.policy.config import GenerateConfig, PolicyEvaluateConfig
from fssa_jax.policy.generation import Samples, Writer, best_reward, sampled_kl, styles_of, summary, true_reward
from fssa_jax.policy.in_context import in_context_predictor
from fssa_jax.policy.score import PolicyScorer
from fssa_jax.policy.train import make_state
from fssa_jax.policy.workdir import PolicyWorkdir
from fssa_jax.predict import evaluation_episodes
from fssa_jax.roles import Role
from fssa_jax.types import Comparisons, Episode, PyTree

_BLEND = (0.0, 0.25, 0.5, 0.75, 1.0)
_STILL = 1e-6  # a latent that nothing moves farther than this has collapsed, which is said elsewhere


@dataclasses.dataclass
class TrainedPolicy:
    """What steers a base, its variables, and the step that they were saved at."""

    conditioner: Conditioner
    variables: PyTree
    step: int


def trained_policy(work: PolicyWorkdir, role: Role = "main") -> TrainedPolicy | None:
    """The best policy of a role; None where this configuration, or its training so far, has none.

    Raises:
      UserError: the main policy has no checkpoint yet.
    """
    if role in work.roles:
        conditioner, _, state = make_state(work, role)
        found = roles.restore(work.path, role, state)
        if found is not None:
            return TrainedPolicy(conditioner, *found)
    if role == "main":
        raise UserError(f"{work.path}: no checkpoint yet; let launch.train reach its first one")
    return None


@dataclasses.dataclass
class PolicyEvaluation:
    """report.json as a dictionary, and what pictures and pages need beside it."""

    report: dict[str, Any]
    choices: Evaluation
    written: dict[str, Any]  # samples side by side, and the continuum


def trained_policies(work: PolicyWorkdir) -> dict[Role, TrainedPolicy]:
    """The best policy of every role that there is.

    Raises:
      UserError: the main policy has no checkpoint yet.
    """
    found: dict[Role, TrainedPolicy | None] = {role: trained_policy(work, role) for role in work.roles}
    return {role: policy for role, policy in found.items() if policy is not None}


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
        own, split, work.dataset, settings, population=population, oracle=predictor(others.get("oracle")),
        seed=work.config.seed, max_users=settings.users, max_targets=settings.targets, scramble=True,
    )  # fmt: skip
    report = result.report
    report["step"] = main.step
    if settings.in_context_users:
        # Of few people, for it is dear; the policy itself is scored on the same ones.
        for name, asked in (("in_context", in_context_predictor(work, data)), ("in_context_own", own)):
            few = evaluate(
                asked, split, work.dataset, settings, seed=work.config.seed, max_users=settings.in_context_users,
                max_targets=min(settings.targets, 8), control=False,
            ).report  # fmt: skip
            report[name], report[f"{name}_steering"] = few["accuracy"], few["steering"]
            report["users"]["in_context"] = few["users"]["scored"]
    written: dict[str, Any] = {}
    if main.conditioner.latent == "context":
        report["latent"] |= drift(work, split, main, result.users, settings)
    if settings.generate.people:
        report["generation"], written = _write(work, split, main, others, result.users, settings)
    return PolicyEvaluation(report, result, written)


def _data_of(work: PolicyWorkdir, split: Split):
    return dataclasses.replace(work.data("test"), choices=jax.tree.map(jnp.asarray, split.table))


def _episodes(work: PolicyWorkdir, split: Split, users: np.ndarray, settings: PolicyEvaluateConfig) -> Episode:
    table = jax.tree.map(jnp.asarray, split.table)
    return evaluation_episodes(work.config.seed, 0, table, jnp.asarray(users), max_context=max(settings.k))


def latents(policy: TrainedPolicy, episodes: Episode, features: jax.Array, k: int) -> np.ndarray:
    """(users, m) means of q(z | the first k choices); for other latents what each person's is."""
    q: Any = policy.conditioner.apply(policy.variables, truncate_context(episodes, k), features, method="latent_of")
    return np.broadcast_to(np.asarray(q.mean), (len(episodes.user), q.mean.shape[-1]))


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
    episodes = _episodes(work, split, users, settings)
    mixed = dataclasses.replace(episodes, context=scrambled_context(episodes.context, work.config.seed))
    against = dataclasses.replace(episodes, context=contradicted_context(episodes.context))
    ks, most = sorted(set(settings.k)), max(settings.k)

    def norms(these: Episode, even: bool = False) -> dict[str, float]:
        found = {str(k): latents(main, these, features, k + (k % 2 if even else 0)) for k in ks}
        return {k: float(np.linalg.norm(z, axis=-1).mean()) for k, z in found.items()}

    out: dict[str, Any] = {
        "norm": norms(episodes), "norm_scrambled": norms(mixed), "norm_contradicted": norms(against, even=True)
    }  # fmt: skip
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


def _write(
    work: PolicyWorkdir, split: Split, main: TrainedPolicy, others: dict[str, TrainedPolicy], users: np.ndarray,
    settings: PolicyEvaluateConfig,
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """What is sampled for people at every k, beside the base, the population's policy and the specialists."""
    people = first_users(split, users, settings.generate.people // 2 * 2 or 1)
    episodes = _episodes(work, split, people, settings)
    features = work.data("test").features
    targets = np.asarray(episodes.targets.chosen)
    counts = np.maximum(np.asarray(episodes.targets.mask).sum(-1), 1)
    # Some of each person's own held-out prompts, the same for all that is compared.
    prompts = [
        work.dataset.texts[targets[u, j % counts[u]]][0]
        for u in range(len(people))
        for j in range(settings.generate.prompts)
    ]
    rows = np.repeat(np.arange(len(people)), settings.generate.prompts)
    writer = Writer(work.base, settings.generate)
    plain = Writer(work.base, dataclasses.replace(settings.generate, temperature=1.0, top_p=1.0))
    known = work.dataset.truth is not None and work.config.data.source == "styles"
    group = np.asarray(split.table.group)[people]
    weights = styles.people()[0][group] if known else None
    k_most = max(settings.k)

    def adapters_of(policy: TrainedPolicy, k: int) -> Any:
        z = latents(policy, episodes, features, k)[rows]
        return policy.conditioner.apply(policy.variables, jnp.asarray(z), method="adapt")

    report: dict[str, Any] = {"people": len(people), "responses": len(prompts)}
    written: dict[str, Samples] = {}
    rewards: dict[str, np.ndarray] = {}

    def write(name: str, adapters: Any) -> dict[str, Any]:
        samples = writer(prompts, adapters, work.config.seed)
        written[name] = samples
        out: dict[str, Any] = {"finished": float(np.mean(samples.finished))}
        if adapters is not None:  # of what the policy itself says, whatever the sampling of what is shown
            out["kl"] = float(sampled_kl(work.base, plain(prompts, adapters, work.config.seed), adapters).mean())
        if weights is not None:
            style, well = styles_of(samples)
            out |= summary(style, well, weights[rows])
            rewards[name] = true_reward(style, weights[rows])
        return out

    report["base"] = write("base", None)
    for role, policy in others.items():
        report[role] = write(role, adapters_of(policy, k_most))
    conditional = main.conditioner.latent == "context"
    report["policy"] = {
        str(k): write(f"k = {k}", adapters_of(main, k)) for k in (sorted(set(settings.k)) if conditional else (k_most,))
    }
    if rewards:
        for k, out in report["policy"].items():
            mine = rewards[f"k = {k}"]
            for other in ("base", "population"):
                if other in rewards:
                    theirs = rewards[other]
                    out[f"win_rate_over_{other}"] = float(((mine > theirs) + 0.5 * (mine == theirs)).mean())
            if "oracle" in rewards:
                best = float(rewards["oracle"].mean())
                out["reward_of_specialists"] = float(mine.mean()) / best if best > 0 else None
            out["bayes_reward_of_known"] = _bayes_share(work, episodes, group, int(k), settings.generate)
    if conditional and len(people) > 1:
        report["blend"] = blend(work, main, episodes, features, k_most, writer, prompts, rows, weights)
    shown = {name: samples.texts for name, samples in written.items()}
    return report, {
        "opposed": _opposed(work, split, people, weights),
        "prompts": prompts,
        "people": [split.users[i] for i in people[rows]],
        "texts": shown,
    }


def _bayes_share(
    work: PolicyWorkdir, episodes: Episode, group: np.ndarray, k: int, settings: GenerateConfig
) -> float | None:
    """True reward of who writes by the exact posterior after k choices, over that of who writes by the person's own
    weights, both without any loss in a language model (`styles`); see `best_reward`."""
    temperature = work.config.objective.beta * settings.temperature
    truth = work.dataset.truth
    if truth is None or not temperature:
        return None
    rewards, context = jnp.asarray(truth.rewards), truncate_context(episodes, k).context
    evidence = rewards[context.chosen] - rewards[context.rejected]
    posterior = np.exp(bayes_log_posterior(evidence, context.mask, jnp.asarray(truth.log_prior)))
    weights = styles.people()[0]
    known = np.eye(len(weights))[group]
    after, best = (float(best_reward(p, weights[group], temperature).mean()) for p in (posterior, known))
    return after / best if best > 0 else None


def blend(
    work: PolicyWorkdir, main: TrainedPolicy, episodes: Episode, features: jax.Array, k: int, writer: Writer,
    prompts: list[str], rows: np.ndarray, weights: np.ndarray | None,
) -> dict[str, Any]:  # fmt: skip
    """Responses between person 2i and person 2i + 1: z = (1 − t) z_a + t z_b, written to the prompts of the first.

    With known weights `towards_first` is the mean reward under the first person's weights at every t.
    """
    z = latents(main, episodes, features, k)
    first = rows[rows % 2 == 0]
    asked = [prompt for prompt, row in zip(prompts, rows, strict=True) if row % 2 == 0]
    pairs = first + 1 < len(z)
    first, asked = first[pairs], [prompt for prompt, good in zip(asked, pairs, strict=True) if good]
    out: dict[str, Any] = {"t": list(_BLEND), "texts": [], "prompt": asked[0] if asked else ""}
    towards, well = [], []
    for t in _BLEND:
        mixed = (1 - t) * z[first] + t * z[first + 1]
        adapters: Any = main.conditioner.apply(main.variables, jnp.asarray(mixed), method="adapt")
        samples = writer(asked, adapters, work.config.seed)
        out["texts"].append(samples.texts[0])
        if weights is not None:
            style, good = styles_of(samples)
            towards.append(float(true_reward(style, weights[first]).mean()))
            well.append(float(good.mean()))
    if towards:
        out |= {"towards_first": towards, "well_formed": well}
    return out


def _opposed(work: PolicyWorkdir, split: Split, people: np.ndarray, weights: np.ndarray | None) -> list[dict[str, Any]]:
    """Two people, who want the opposite where that is known, as rows of their choices; and a prompt that is new."""
    pair = 0
    if weights is not None and len(people) > 1:  # neighbours want the opposite: the first pair that minds the most
        pair = 2 * int(np.argmax(np.abs(weights[0 : len(people) // 2 * 2 : 2]).sum(1)))
    table, texts = split.table, work.dataset.texts
    out = []
    for user in people[pair : pair + 2]:
        rows = []
        for i in range(min(int(np.asarray(table.count)[user, 0]), max(work.config.evaluate.k))):
            (prompt, a), (_, b) = (texts[int(np.asarray(side)[user, 0, i])] for side in (table.chosen, table.rejected))
            first, second, choice = (a, b, 0) if i % 2 == 0 else (b, a, 1)
            rows.append({"user_id": split.users[user], "prompt": prompt, "response_a": first, "response_b": second,
                         "choice": choice})  # fmt: skip
        asked = texts[int(np.asarray(table.chosen)[user, 1, 0])][0]
        out.append({"name": split.users[user], "choices": rows, "prompt": asked})
    return out
