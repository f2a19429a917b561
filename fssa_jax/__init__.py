"""Models that adapt to a person from a few of their choices (arXiv 2412.13998), in JAX.

Names are imported lazily: array functions do not import Flax, and models do not import the code that reads work
directories. No name here is also the name of a module, so `import fssa_jax.ops` and the like stay modules.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fssa_jax.errors import UserError as UserError
    from fssa_jax.experiment.load import load as load
    from fssa_jax.lm.generate import generate as generate
    from fssa_jax.models.bayes_encoder import BayesEncoder as BayesEncoder
    from fssa_jax.models.bert import BertEncoder as BertEncoder
    from fssa_jax.models.decoder import Decoder as Decoder
    from fssa_jax.models.decoder import DecoderConfig as DecoderConfig
    from fssa_jax.models.decoder import place_sizes as place_sizes
    from fssa_jax.models.hypernetwork import Hypernetwork as Hypernetwork
    from fssa_jax.models.rewards import RewardModel as RewardModel
    from fssa_jax.models.set_encoder import SetEncoder as SetEncoder
    from fssa_jax.ops.adapters import Film as Film
    from fssa_jax.ops.adapters import LowRank as LowRank
    from fssa_jax.ops.adapters import apply_adapter as apply_adapter
    from fssa_jax.ops.adapters import combine_adapters as combine_adapters
    from fssa_jax.ops.attention import attention as attention
    from fssa_jax.ops.distributions import gaussian_kl as gaussian_kl
    from fssa_jax.ops.distributions import gaussian_log_prob as gaussian_log_prob
    from fssa_jax.ops.distributions import gaussian_sample as gaussian_sample
    from fssa_jax.ops.episodes import draw_episode as draw_episode
    from fssa_jax.ops.episodes import evaluation_episode as evaluation_episode
    from fssa_jax.ops.likelihoods import btl_log_likelihood as btl_log_likelihood
    from fssa_jax.ops.likelihoods import choice_log_likelihood as choice_log_likelihood
    from fssa_jax.ops.likelihoods import dpl_log_likelihood as dpl_log_likelihood
    from fssa_jax.ops.likelihoods import lapse_log_likelihood as lapse_log_likelihood
    from fssa_jax.ops.likelihoods import rating_log_likelihood as rating_log_likelihood
    from fssa_jax.ops.likelihoods import thumb_log_likelihood as thumb_log_likelihood
    from fssa_jax.ops.logprobs import response_log_probs as response_log_probs
    from fssa_jax.ops.logprobs import token_log_probs as token_log_probs
    from fssa_jax.ops.losses import dpo_loss as dpo_loss
    from fssa_jax.ops.losses import imitation_loss as imitation_loss
    from fssa_jax.ops.losses import implicit_rewards as implicit_rewards
    from fssa_jax.ops.losses import latent_roles as latent_roles
    from fssa_jax.ops.losses import list_dpo_loss as list_dpo_loss
    from fssa_jax.ops.losses import neural_process_loss as neural_process_loss
    from fssa_jax.ops.losses import response_weights as response_weights
    from fssa_jax.ops.losses import sft_loss as sft_loss
    from fssa_jax.ops.losses import soft_label_loss as soft_label_loss
    from fssa_jax.ops.metrics import bayes_log_predictive as bayes_log_predictive
    from fssa_jax.ops.metrics import expected_calibration_error as expected_calibration_error
    from fssa_jax.ops.metrics import preference_accuracy as preference_accuracy
    from fssa_jax.ops.metrics import steering_score as steering_score
    from fssa_jax.ops.sampling import Sampling as Sampling
    from fssa_jax.people.blend import blend as blend
    from fssa_jax.people.choices import read_choices as read_choices
    from fssa_jax.people.person import PersonModel as PersonModel
    from fssa_jax.people.person import PersonPolicy as PersonPolicy
    from fssa_jax.types import ChoiceTable as ChoiceTable
    from fssa_jax.types import Comparisons as Comparisons
    from fssa_jax.types import DiagGaussian as DiagGaussian
    from fssa_jax.types import Episode as Episode

# The public names, by the module that defines them.
_NAMES = {
    "errors": ("UserError",),
    "experiment.load": ("load",),
    "lm.generate": ("generate",),
    "models.bayes_encoder": ("BayesEncoder",),
    "models.bert": ("BertEncoder",),
    "models.decoder": ("Decoder", "DecoderConfig", "place_sizes"),
    "models.set_encoder": ("SetEncoder",),
    "models.hypernetwork": ("Hypernetwork",),
    "models.rewards": ("RewardModel",),
    "ops.adapters": ("Film", "LowRank", "apply_adapter", "combine_adapters"),
    "ops.attention": ("attention",),
    "ops.distributions": ("gaussian_kl", "gaussian_log_prob", "gaussian_sample"),
    "ops.episodes": ("draw_episode", "evaluation_episode"),
    "ops.likelihoods": (
        "btl_log_likelihood",
        "choice_log_likelihood",
        "dpl_log_likelihood",
        "lapse_log_likelihood",
        "rating_log_likelihood",
        "thumb_log_likelihood",
    ),
    "ops.logprobs": ("response_log_probs", "token_log_probs"),
    "ops.losses": (
        "dpo_loss",
        "imitation_loss",
        "implicit_rewards",
        "latent_roles",
        "list_dpo_loss",
        "neural_process_loss",
        "response_weights",
        "sft_loss",
        "soft_label_loss",
    ),
    "ops.metrics": ("bayes_log_predictive", "expected_calibration_error", "preference_accuracy", "steering_score"),
    "ops.sampling": ("Sampling",),
    "people.blend": ("blend",),
    "people.choices": ("read_choices",),
    "people.person": ("PersonModel", "PersonPolicy"),
    "types": ("ChoiceTable", "Comparisons", "DiagGaussian", "Episode"),
}
_MODULE_OF = {name: f"fssa_jax.{module}" for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULE_OF)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
