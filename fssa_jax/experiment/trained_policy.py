"""Policies that were trained: read from a work directory, and what they infer of people."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fssa_jax.config.policy import PolicyEvaluateConfig
from fssa_jax.data.dataset import Split
from fssa_jax.errors import UserError
from fssa_jax.evaluate.predictor import evaluation_episodes
from fssa_jax.experiment.policy_workdir import PolicyWorkdir
from fssa_jax.experiment.train_policy import make_state
from fssa_jax.models.conditioner import Conditioner
from fssa_jax.ops.episodes import truncate_context
from fssa_jax.train import roles
from fssa_jax.train.roles import Role
from fssa_jax.types import Episode, PyTree


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


def trained_policies(work: PolicyWorkdir) -> dict[Role, TrainedPolicy]:
    """The best policy of every role that there is.

    Raises:
      UserError: the main policy has no checkpoint yet.
    """
    found: dict[Role, TrainedPolicy | None] = {role: trained_policy(work, role) for role in work.roles}
    return {role: policy for role, policy in found.items() if policy is not None}


def episodes_of(work: PolicyWorkdir, split: Split, users: np.ndarray, settings: PolicyEvaluateConfig) -> Episode:
    """The first draw of contexts of these users, and their targets."""
    table = jax.tree.map(jnp.asarray, split.table)
    return evaluation_episodes(work.config.seed, 0, table, jnp.asarray(users), max_context=max(settings.k))


def latents(policy: TrainedPolicy, episodes: Episode, features: jax.Array, k: int) -> np.ndarray:
    """(users, m) means of q(z | the first k choices); for other latents what each person's is."""
    q: Any = policy.conditioner.apply(policy.variables, truncate_context(episodes, k), features, method="latent_of")
    return np.broadcast_to(np.asarray(q.mean), (len(episodes.user), q.mean.shape[-1]))
