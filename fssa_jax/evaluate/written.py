"""Generated responses for held-out people: policy versus base, population policy and specialists."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from fssa_jax.config import Generation, PolicyEvaluation, Styles
from fssa_jax.data.benchmarks import people_of
from fssa_jax.data.benchmarks.simulated import SimulatedPeople
from fssa_jax.data.dataset import Split, choice_records, seen_in_training
from fssa_jax.data.manner import has
from fssa_jax.evaluate.attributes import attribute_report, median_words, opposed, tastes
from fssa_jax.evaluate.bayes import posterior
from fssa_jax.evaluate.best_of import Judge, best_of, kl_bound
from fssa_jax.evaluate.episodes import episodes_of, first_users
from fssa_jax.evaluate.quality import Embed, quality
from fssa_jax.evaluate.simulated_scores import best_reward, styles_of, summary, true_reward
from fssa_jax.lm.hub import at_hand
from fssa_jax.lm.messages import messages_of
from fssa_jax.lm.text_encoder import EmbedSettings, TextEncoder
from fssa_jax.lm.writer import Samples, Writer, said, sampled_kl
from fssa_jax.models.conditioner import Conditioner
from fssa_jax.ops.adapters import AdapterTree, with_strength
from fssa_jax.ops.episodes import truncate_context
from fssa_jax.ops.sampling import Sampling
from fssa_jax.tasks.policy import PolicyTask, reads_new_texts
from fssa_jax.tasks.predictor import Predictor
from fssa_jax.types import Episode, PyTree

_BLEND = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclasses.dataclass(frozen=True)
class TrainedPolicy:
    """A policy with its variables: infers latents and emits adapters, whose changes are multiplied by `strength`."""

    conditioner: Conditioner
    variables: PyTree
    predictor: Predictor
    strength: float = 1.0

    def adapt(self, z: np.ndarray) -> AdapterTree:
        """Adapters for latents (rows, m), one row each."""
        adapters: Any = self.conditioner.apply(self.variables, jnp.asarray(z), method="adapt")
        return with_strength(adapters, self.strength)


@dataclasses.dataclass
class Written:
    """Metrics for report.json, and example responses side by side."""

    report: dict[str, Any]
    responses: dict[str, Any]


@dataclasses.dataclass
class _Asked:
    """Prompts to answer, one per row, and the index of the person who asks.

    `weights` (rows, attributes) are the person's true weights on the attributes of a benchmark, None on other data.
    """

    prompts: list[str]
    rows: np.ndarray
    weights: np.ndarray | None

    def only(self, keep: np.ndarray) -> "_Asked":
        """The rows where a mask holds."""
        prompts = [prompt for prompt, good in zip(self.prompts, keep, strict=True) if good]
        return _Asked(prompts, self.rows[keep], None if self.weights is None else self.weights[keep])


def written_for(
    task: PolicyTask, split: Split, policies: Mapping[str, TrainedPolicy], users: np.ndarray, settings: PolicyEvaluation
) -> Written:
    """Generates responses for people at every k, to the prompts of their own targets, and scores them.

    plain_… and kl are measured on samples at temperature 1 from all tokens, independent of `settings.generate`. On
    `styles` and `chat` responses are scored under the true weights; elsewhere by the reward model that the policy was
    trained with, given all choices of the person. Specialists answer only people whose group has training people.
    """
    main, k_most, generation = policies["main"], max(settings.k), settings.generate
    reads, seed = main.predictor.reads, task.config.seed
    people = first_users(split, users, generation.people // 2 * 2 or 1)
    episodes = episodes_of(split, people, seed, k_most)
    group = np.asarray(split.table.group)[people]
    known = people_of(task.config.data) if task.dataset.truth is not None else None
    weights = known.every()[0][group] if known else None
    asked = _asked(task, episodes, generation.prompts, weights)
    trained_groups = np.unique(np.asarray(task.dataset.splits["train"].table.group))
    has_specialist = np.isin(group, trained_groups)[asked.rows]
    writer = Writer(task.base, Sampling(generation.temperature, top_p=generation.top_p), generation.max_new, cut=True)
    plain = Writer(task.base, Sampling(1.0), generation.max_new, cut=True)
    judge = _reward_model(task, main, main.predictor.latents(episodes, k_most)) if reads else None
    measured = _measures(task, split, people, known, weights, generation)
    written: dict[str, Samples] = {}
    rewards: dict[str, np.ndarray] = {}

    def write(name: str, policy: TrainedPolicy | None, k: int, to: _Asked) -> dict[str, Any]:
        adapters = None
        if policy is not None:
            adapters = policy.adapt(policy.predictor.latents(episodes, k)[to.rows])
        samples = written[name] = writer(to.prompts, adapters, seed)
        out: dict[str, Any] = {"finished": float(np.mean(samples.finished))}
        # Plain samples of the policy, independent of the sampling settings of the shown responses.
        itself = plain(to.prompts, adapters, seed)
        if adapters is not None:
            out["kl"] = float(sampled_kl(task.base, itself, adapters).mean())
        out |= measured(samples, to)
        if known and to.weights is not None:
            style, well = styles_of(known, samples)
            out |= summary(known, style, well, to.weights)
            of_itself = summary(known, *styles_of(known, itself), to.weights)
            out |= {f"plain_{key}": of_itself[key] for key in ("movement", "reward", "well_formed")}
            rewards[name] = true_reward(known, style, to.weights)
        elif judge is not None:
            rewards[name] = judge(samples, to.rows)
            out["model_reward"] = float(rewards[name].mean())
        return out

    report: dict[str, Any] = {
        "people": len(people),
        "responses": len(asked.prompts),
        "base": write("base", None, 0, asked),
    }
    for name, policy in policies.items():
        to = asked.only(has_specialist) if name == "specialist" else asked
        if name != "main" and to.prompts:
            report[name] = write(name, policy, k_most, to)
    report["policy"] = {}
    for k in sorted(set(settings.k)) if reads else (k_most,):
        name = f"k = {k}"
        out = report["policy"][str(k)] = write(name, main, k, asked)
        for other in {"base", "population"} & rewards.keys():
            key = f"win_rate_over_{other}" if known else f"model_win_rate_over_{other}"
            out[key] = win_rate(rewards[name], rewards[other])
        if known and "specialist" in rewards:
            best = float(rewards["specialist"].mean())
            out["reward_of_specialists"] = float(rewards[name][has_specialist].mean()) / best if best > 0 else None
        # Only the base of `styles` writes every style equally often, as this assumes.
        equal, warm = isinstance(task.config.data, Styles), task.config.objective.beta * generation.temperature
        if known and equal and reads and warm:
            by_posterior, best = _without_loss(task, known, episodes, group, int(k), generation)
            for key, reward in (("bayes_reward_of_known", by_posterior), ("reward_of_known", out["reward"])):
                out[key] = reward / best if best > 0 else None
    if judge is not None and generation.best_of:
        few = asked.only(np.arange(len(asked.prompts)) < generation.best_of_prompts)
        z = main.predictor.latents(episodes, k_most)[few.rows]
        of = {"base": None, "policy": main.adapt(z)}
        report["best_of"] = {
            name: _best_of(plain, judge, known, few, generation.best_of, a, seed) for name, a in of.items()
        }
        for out in report["best_of"]["base"].values():  # of the policy, the divergence from its own samples
            if isinstance(out, dict):
                out["kl_bound"] = kl_bound(out["n"])
    report["cut_prompts"] = writer.cut_prompts(asked.prompts)
    if reads and len(people) > 1:
        report["blend"] = blend(main, known, main.predictor.latents(episodes, k_most), writer, asked, seed)
    return Written(
        report,
        {
            "opposed": _opposed(task, split, people, weights),
            "prompts": asked.prompts,
            "people": [split.users[i] for i in people[asked.rows]],
            "texts": {
                name: samples.texts for name, samples in written.items() if len(samples.texts) == len(asked.prompts)
            },
        },
    )


def _measures(
    task: PolicyTask,
    split: Split,
    people: np.ndarray,
    known: SimulatedPeople | None,
    weights: np.ndarray | None,
    settings: Generation,
) -> Callable[[Samples, _Asked], dict[str, Any]]:
    """What is measured of responses on any data: attributes, their movement between opposed people, and quality."""
    texts = task.dataset.texts
    judged = np.flatnonzero(seen_in_training(task.dataset))
    long = median_words([texts[i][1] for i in judged])
    if known is not None and weights is not None:
        names: Sequence[str] = known.attributes
        side = np.sign(weights).astype(int)
    else:
        names = settings.attributes
        side = opposed(tastes(split, texts, names, people, long))
    encoder = settings.topic_encoder
    embed = _embed(encoder) if encoder and at_hand(encoder) else None

    def measured(samples: Samples, to: _Asked) -> dict[str, Any]:
        questions = [messages_of(prompt)[-1]["content"] for prompt in to.prompts]
        out = quality(task.base, samples, questions, embed)
        if names:
            found = styles_of(known, samples)[0] > 0 if known else has(names, samples.texts, long)
            draws = task.config.evaluate.bootstrap
            out |= attribute_report(names, found, side, to.rows, to.prompts, draws, task.config.seed)
        return out

    return measured


def _embed(name: str) -> Embed:
    encoder = TextEncoder(EmbedSettings(name))
    return lambda said: encoder.embed([("", text) for text in said])


def _best_of(
    writer: Writer,
    judge: Judge,
    known: SimulatedPeople | None,
    asked: _Asked,
    ns: Sequence[int],
    adapters: AdapterTree | None,
    seed: int,
) -> dict[str, Any]:
    """Scores of the best of n samples at temperature 1, for every n; and the reward of one sample, for comparison."""
    best = best_of(writer, judge, asked.prompts, asked.rows, sorted({1, *ns}), adapters, seed)
    report: dict[str, Any] = {"responses": len(asked.prompts)}
    for n, samples in best.items():
        out: dict[str, Any] = {"n": n, "model_reward": float(judge(samples, asked.rows).mean())}
        if known and asked.weights is not None:
            out |= summary(known, *styles_of(known, samples), asked.weights)
        report[str(n)] = out
    return report


def _asked(task: PolicyTask, episodes: Episode, number: int, weights: np.ndarray | None) -> _Asked:
    """Held-out prompts of each person, the same for all policies."""
    targets, counts = (np.asarray(x) for x in (episodes.targets.chosen, episodes.targets.mask.sum(-1)))
    rows = np.repeat(np.arange(len(targets)), number)
    prompts = [
        task.dataset.texts[targets[u, j % max(counts[u], 1)]][0] for u in range(len(targets)) for j in range(number)
    ]
    return _Asked(prompts, rows, None if weights is None else weights[rows])


def win_rate(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The share of our responses that are better than theirs to the same prompt; a tie counts ½.

    >>> import numpy as np
    >>> from fssa_jax.evaluate.written import win_rate
    >>> win_rate(np.array([2.0, 1.0, 0.0, 3.0]), np.array([1.0, 1.0, 1.0, 1.0]))
    0.625
    """
    return float(((ours > theirs) + 0.5 * (ours == theirs)).mean())


def _reward_model(task: PolicyTask, main: TrainedPolicy, z: np.ndarray) -> Judge | None:
    """Rewards at z under the reward model that the policy was trained with.

    None if there is no reward model, or if it cannot read new texts.
    """
    if not reads_new_texts(task):
        return None

    def rewards(samples: Samples, rows: np.ndarray) -> np.ndarray:
        read = task.dataset.featuriser.transform(list(zip(samples.prompts, map(said, samples.texts), strict=True)))
        out: Any = main.conditioner.apply(
            main.variables,
            jnp.asarray(read),
            jnp.asarray(z[rows]),
            method=lambda module, y, z: module.reward_model.rewards(y[:, None], z[None])[0, :, 0, 0],
        )
        return np.asarray(out)

    return rewards


def _without_loss(
    task: PolicyTask, people: SimulatedPeople, episodes: Episode, group: np.ndarray, k: int, settings: Generation
) -> tuple[float, float]:
    """True reward, in nats, of the optimal policies under the exact posterior after k choices and the true weights.

    Neither includes losses of a language model (`styles`); see `best_reward`.
    """
    truth = task.dataset.truth
    assert truth is not None
    after = posterior(truth, truncate_context(episodes, k).context)
    weights, temperature = people.every()[0], task.config.objective.beta * settings.temperature
    known = np.eye(len(weights))[group]
    by_posterior, best = (float(best_reward(people, p, weights[group], temperature).mean()) for p in (after, known))
    return by_posterior, best


def blend(
    main: TrainedPolicy, known: SimulatedPeople | None, z: np.ndarray, writer: Writer, asked: _Asked, seed: int
) -> dict[str, Any]:
    """Responses that interpolate between persons 2i and 2i + 1: z = (1 − t) z_a + t z_b, on the first one's prompts.

    If the true weights are known, `towards_first` is the mean reward under the first person's weights at every t.
    """
    to = asked.only((asked.rows % 2 == 0) & (asked.rows + 1 < len(z)))
    out: dict[str, Any] = {"t": list(_BLEND), "texts": [], "prompt": to.prompts[0] if to.prompts else ""}
    towards, well = [], []
    for t in _BLEND:
        adapters = main.adapt((1 - t) * z[to.rows] + t * z[to.rows + 1])
        samples = writer(to.prompts, adapters, seed)
        out["texts"].append(samples.texts[0])
        if known and to.weights is not None:
            style, good = styles_of(known, samples)
            towards.append(float(true_reward(known, style, to.weights).mean()))
            well.append(float(good.mean()))
    if towards:
        out |= {"towards_first": towards, "well_formed": well}
    return out


def _opposed(task: PolicyTask, split: Split, people: np.ndarray, weights: np.ndarray | None) -> list[dict[str, Any]]:
    """The choices of two people, of opposite weights if these are known, as rows; and a new prompt."""
    pair = 0
    if (
        weights is not None and len(people) > 1
    ):  # neighbours have opposite weights: take the first pair with the most nonzero ones
        pair = 2 * int(np.argmax(np.abs(weights[0 : len(people) // 2 * 2 : 2]).sum(1)))
    table, texts = split.table, task.dataset.texts
    return [
        {
            "name": split.users[user],
            "choices": choice_records(split, texts, int(user), max(task.config.evaluate.k)),
            "prompt": texts[int(np.asarray(table.chosen)[user, 1, 0])][0],
        }
        for user in people[pair : pair + 2]
    ]
