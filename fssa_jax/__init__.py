"""Models that adapt to a person from a few of their choices (arXiv 2412.13998), in JAX."""

from typing import TYPE_CHECKING, Any

from fssa_jax.lm.generate import generate as generate
from fssa_jax.models.bayes_encoder import BayesEncoder as BayesEncoder
from fssa_jax.models.bert import BertEncoder as BertEncoder
from fssa_jax.models.decoder import Decoder as Decoder
from fssa_jax.models.decoder import DecoderConfig as DecoderConfig
from fssa_jax.models.hypernetwork import Hypernetwork as Hypernetwork
from fssa_jax.models.rewards import RewardModel as RewardModel
from fssa_jax.models.set_encoder import SetEncoder as SetEncoder
from fssa_jax.ops.adapters import Film as Film
from fssa_jax.ops.adapters import LowRank as LowRank
from fssa_jax.ops.adapters import combine_adapters as combine_adapters
from fssa_jax.ops.attention import attention as attention
from fssa_jax.ops.distributions import gaussian_kl as gaussian_kl
from fssa_jax.ops.distributions import gaussian_log_prob as gaussian_log_prob
from fssa_jax.ops.distributions import gaussian_sample as gaussian_sample
from fssa_jax.ops.episodes import draw_episode as draw_episode
from fssa_jax.ops.episodes import evaluation_episode as evaluation_episode
from fssa_jax.ops.likelihoods import btl_log_likelihood as btl_log_likelihood
from fssa_jax.ops.likelihoods import dpl_log_likelihood as dpl_log_likelihood
from fssa_jax.ops.logprobs import response_log_probs as response_log_probs
from fssa_jax.ops.logprobs import token_log_probs as token_log_probs
from fssa_jax.ops.losses import dpo_loss as dpo_loss
from fssa_jax.ops.losses import latent_roles as latent_roles
from fssa_jax.ops.losses import neural_process_loss as neural_process_loss
from fssa_jax.ops.losses import response_weights as response_weights
from fssa_jax.ops.metrics import bayes_log_predictive as bayes_log_predictive
from fssa_jax.ops.metrics import expected_calibration_error as expected_calibration_error
from fssa_jax.ops.metrics import preference_accuracy as preference_accuracy
from fssa_jax.ops.metrics import steering_score as steering_score
from fssa_jax.ops.sampling import Sampling as Sampling
from fssa_jax.types import ChoiceTable as ChoiceTable
from fssa_jax.types import Comparisons as Comparisons
from fssa_jax.types import DiagGaussian as DiagGaussian
from fssa_jax.types import Episode as Episode

if TYPE_CHECKING:
    from fssa_jax.people.person import Steerer as Steerer
    from fssa_jax.people.person import blended as blended
    from fssa_jax.people.person import choices_in as choices_in


def __getattr__(name: str) -> Any:
    """What reads work directories is imported when it is asked for: functions on arrays come without it."""
    if name in ("Steerer", "blended", "choices_in"):
        from fssa_jax.people import person as steer

        return getattr(steer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
