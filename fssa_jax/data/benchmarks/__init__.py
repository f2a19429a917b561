"""Benchmarks with a known Bayes limit."""

from fssa_jax.config import Chat, Data, Styles
from fssa_jax.data.benchmarks import chat, styles
from fssa_jax.data.benchmarks.simulated import SimulatedPeople


def people_of(data: Data) -> SimulatedPeople | None:
    """The simulated people of a benchmark, whose weights on attributes of texts are known; None for other data."""
    return {Styles: styles.PEOPLE, Chat: chat.PEOPLE}.get(type(data))
