"""Models that adapt to a person from a few of their choices (arXiv 2412.13998), in JAX."""

from fssa_jax.distributions import gaussian_kl as gaussian_kl
from fssa_jax.distributions import gaussian_log_prob as gaussian_log_prob
from fssa_jax.distributions import gaussian_sample as gaussian_sample
from fssa_jax.episodes import draw_episode as draw_episode
from fssa_jax.episodes import evaluation_episode as evaluation_episode
from fssa_jax.likelihoods import btl_log_likelihood as btl_log_likelihood
from fssa_jax.likelihoods import dpl_log_likelihood as dpl_log_likelihood
from fssa_jax.losses import latent_roles as latent_roles
from fssa_jax.losses import neural_process_loss as neural_process_loss
from fssa_jax.metrics import bayes_log_predictive as bayes_log_predictive
from fssa_jax.metrics import expected_calibration_error as expected_calibration_error
from fssa_jax.metrics import preference_accuracy as preference_accuracy
from fssa_jax.metrics import steering_score as steering_score
from fssa_jax.models.encoder import NPEncoder as NPEncoder
from fssa_jax.models.rewards import RewardModel as RewardModel
from fssa_jax.types import ChoiceTable as ChoiceTable
from fssa_jax.types import Comparisons as Comparisons
from fssa_jax.types import DiagGaussian as DiagGaussian
from fssa_jax.types import Episode as Episode
