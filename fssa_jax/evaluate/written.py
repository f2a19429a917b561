"""What a policy writes for held-out people, beside the base, the population's policy and the specialists."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax.config.policy import GenerateConfig, PolicyEvaluateConfig
from fssa_jax.data.benchmarks import styles
from fssa_jax.data.dataset import Split
from fssa_jax.data.features import GivenFeaturiser
from fssa_jax.evaluate.evaluate import first_users
from fssa_jax.experiment.policy_workdir import PolicyWorkdir
from fssa_jax.experiment.trained_policy import TrainedPolicy, episodes_of, latents
from fssa_jax.lm.writer import Samples, Writer, best_reward, sampled_kl, styles_of, summary, true_reward
from fssa_jax.ops.episodes import truncate_context
from fssa_jax.ops.metrics import bayes_log_posterior
from fssa_jax.train.roles import Role
from fssa_jax.types import Episode

_BLEND = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclasses.dataclass
class _Asked:
    """Who is written for: a prompt a row, and whose it is, as a place among the people.

    `weights` (rows, attributes) are the people's own on the attributes of `styles`, None on other data.
    """

    prompts: list[str]
    rows: np.ndarray
    weights: np.ndarray | None

    def only(self, keep: np.ndarray) -> "_Asked":
        """The rows of a mask."""
        prompts = [prompt for prompt, good in zip(self.prompts, keep, strict=True) if good]
        return _Asked(prompts, self.rows[keep], None if self.weights is None else self.weights[keep])


def written_for(
    work: PolicyWorkdir,
    split: Split,
    policies: dict[Role, TrainedPolicy],
    users: np.ndarray,
    settings: PolicyEvaluateConfig,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(figures, responses side by side) of what is sampled for people at every k, to prompts of their own targets.

    plain_… are of what is sampled at temperature 1 from all tokens, whatever `settings.generate` says; so is kl.
    Where people's wishes are known (`styles`) responses are judged by those; elsewhere by the reward model that the
    policy learnt from, at all choices of each person. Specialists write for those whose group has training people.
    """
    main, k_most = policies["main"], max(settings.k)
    conditional = main.conditioner.latent == "context"
    people = first_users(split, users, settings.generate.people // 2 * 2 or 1)
    episodes, features = episodes_of(work, split, people, settings), work.data("test").features
    group = np.asarray(split.table.group)[people]
    known = work.dataset.truth is not None and work.config.data.source == "styles"
    asked = _asked(work, episodes, settings.generate.prompts, styles.people()[0][group] if known else None)
    trained_groups = np.unique(np.asarray(work.dataset.splits["train"].table.group))
    has_specialist = np.isin(group, trained_groups)[asked.rows]
    writer = Writer(work.base, settings.generate, cut=True)
    plain = Writer(work.base, dataclasses.replace(settings.generate, temperature=1.0, top_p=1.0), cut=True)
    judge = None if known or not conditional else _reward_model(work, main, episodes, features, k_most)
    written: dict[str, Samples] = {}
    rewards: dict[str, np.ndarray] = {}

    def write(name: str, policy: TrainedPolicy | None, k: int, to: _Asked) -> dict[str, Any]:
        adapters: Any = None
        if policy is not None:
            z = jnp.asarray(latents(policy, episodes, features, k)[to.rows])
            adapters = policy.conditioner.apply(policy.variables, z, method="adapt")
        samples = written[name] = writer(to.prompts, adapters, work.config.seed)
        out: dict[str, Any] = {"finished": float(np.mean(samples.finished))}
        # What the policy itself says, whatever the sampling of what is shown.
        itself = plain(to.prompts, adapters, work.config.seed)
        if adapters is not None:
            out["kl"] = float(sampled_kl(work.base, itself, adapters).mean())
        if to.weights is not None:
            style, well = styles_of(samples)
            out |= summary(style, well, to.weights)
            of_itself = summary(*styles_of(itself), to.weights)
            out |= {f"plain_{key}": of_itself[key] for key in ("movement", "reward", "well_formed")}
            rewards[name] = true_reward(style, to.weights)
        elif judge is not None:
            rewards[name] = judge(samples, to.rows)
            out["model_reward"] = float(rewards[name].mean())
        return out

    report: dict[str, Any] = {
        "people": len(people),
        "responses": len(asked.prompts),
        "base": write("base", None, 0, asked),
    }
    for role, policy in policies.items():
        to = asked.only(has_specialist) if role == "oracle" else asked
        if role != "main" and to.prompts:
            report[role] = write(role, policy, k_most, to)
    report["policy"] = {}
    for k in sorted(set(settings.k)) if conditional else (k_most,):
        name = f"k = {k}"
        out = report["policy"][str(k)] = write(name, main, k, asked)
        for other in {"base", "population"} & rewards.keys():
            key = f"win_rate_over_{other}" if known else f"model_win_rate_over_{other}"
            out[key] = win_rate(rewards[name], rewards[other])
        if known and "oracle" in rewards:
            best = float(rewards["oracle"].mean())
            out["reward_of_specialists"] = float(rewards[name][has_specialist].mean()) / best if best > 0 else None
        if known and conditional and work.config.objective.beta * settings.generate.temperature:
            by_posterior, best = _without_loss(work, episodes, group, int(k), settings.generate)
            for key, reward in (("bayes_reward_of_known", by_posterior), ("reward_of_known", out["reward"])):
                out[key] = reward / best if best > 0 else None
    report["cut_prompts"] = writer.cut_prompts(asked.prompts)
    if conditional and len(people) > 1:
        report["blend"] = blend(work, main, latents(main, episodes, features, k_most), writer, asked)
    return report, {
        "opposed": _opposed(work, split, people, None if not known else styles.people()[0][group]),
        "prompts": asked.prompts,
        "people": [split.users[i] for i in people[asked.rows]],
        "texts": {name: samples.texts for name, samples in written.items() if len(samples.texts) == len(asked.prompts)},
    }


def _asked(work: PolicyWorkdir, episodes: Episode, number: int, weights: np.ndarray | None) -> _Asked:
    """Some of each person's own held-out prompts, the same for all that is compared."""
    targets, counts = (np.asarray(x) for x in (episodes.targets.chosen, episodes.targets.mask.sum(-1)))
    rows = np.repeat(np.arange(len(targets)), number)
    prompts = [
        work.dataset.texts[targets[u, j % max(counts[u], 1)]][0] for u in range(len(targets)) for j in range(number)
    ]
    return _Asked(prompts, rows, None if weights is None else weights[rows])


def win_rate(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The share of responses that are better than another's to the same prompt; a tie counts ½.

    >>> import numpy as np
    >>> from fssa_jax.evaluate.written import win_rate
    >>> win_rate(np.array([2.0, 1.0, 0.0, 3.0]), np.array([1.0, 1.0, 1.0, 1.0]))
    0.625
    """
    return float(((ours > theirs) + 0.5 * (ours == theirs)).mean())


def _reward_model(
    work: PolicyWorkdir, main: TrainedPolicy, episodes: Episode, features: jax.Array, k: int
) -> Callable[[Samples, np.ndarray], np.ndarray] | None:
    """(samples, whose each is) ↦ their rewards by the reward model that the policy learnt from, after k choices, in
    nats; None where there is none, or none that can read new texts."""
    reads = work.reward.target != "none" and not isinstance(work.dataset.featuriser, GivenFeaturiser)
    if not work.config.encoder.init_from or not reads:
        return None
    z = latents(main, episodes, features, k)

    def rewards(samples: Samples, rows: np.ndarray) -> np.ndarray:
        read = work.dataset.featuriser.transform(list(zip(samples.prompts, samples.texts, strict=True)))
        out: Any = main.conditioner.apply(
            main.variables,
            jnp.asarray(read),
            jnp.asarray(z[rows]),
            method=lambda module, y, z: module.reward_model.rewards(y[:, None], z[None])[0, :, 0, 0],
        )
        return np.asarray(out)

    return rewards


def _without_loss(
    work: PolicyWorkdir, episodes: Episode, group: np.ndarray, k: int, settings: GenerateConfig
) -> tuple[float, float]:
    """True reward, in nats, of who writes by the exact posterior after k choices, and of who writes by the person's own
    weights, both without any loss in a language model (`styles`); see `best_reward`."""
    truth = work.dataset.truth
    assert truth is not None
    rewards, context = jnp.asarray(truth.rewards), truncate_context(episodes, k).context
    evidence = rewards[context.chosen] - rewards[context.rejected]
    posterior = np.exp(bayes_log_posterior(evidence, context.mask, jnp.asarray(truth.log_prior)))
    weights, temperature = styles.people()[0], work.config.objective.beta * settings.temperature
    after, best = (
        float(best_reward(p, weights[group], temperature).mean()) for p in (posterior, np.eye(len(weights))[group])
    )
    return after, best


def blend(work: PolicyWorkdir, main: TrainedPolicy, z: np.ndarray, writer: Writer, asked: _Asked) -> dict[str, Any]:
    """Responses between person 2i and person 2i + 1: z = (1 − t) z_a + t z_b, written to the prompts of the first.

    With known weights `towards_first` is the mean reward under the first person's weights at every t.
    """
    to = asked.only((asked.rows % 2 == 0) & (asked.rows + 1 < len(z)))
    out: dict[str, Any] = {"t": list(_BLEND), "texts": [], "prompt": to.prompts[0] if to.prompts else ""}
    towards, well = [], []
    for t in _BLEND:
        mixed = (1 - t) * z[to.rows] + t * z[to.rows + 1]
        adapters: Any = main.conditioner.apply(main.variables, jnp.asarray(mixed), method="adapt")
        samples = writer(to.prompts, adapters, work.config.seed)
        out["texts"].append(samples.texts[0])
        if to.weights is not None:
            style, good = styles_of(samples)
            towards.append(float(true_reward(style, to.weights).mean()))
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
            rows.append(
                {
                    "user_id": split.users[user],
                    "prompt": prompt,
                    "response_a": first,
                    "response_b": second,
                    "choice": choice,
                }
            )
        asked = texts[int(np.asarray(table.chosen)[user, 1, 0])][0]
        out.append({"name": split.users[user], "choices": rows, "prompt": asked})
    return out
