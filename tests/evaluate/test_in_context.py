"""The baseline without training: choices in the prompt of the base."""

import dataclasses

import numpy as np
import pytest

from fssa_jax.evaluate import in_context
from fssa_jax.evaluate.episodes import episodes_of
from fssa_jax.evaluate.in_context import in_context_predictor, in_context_prompt
from fssa_jax.experiment.workdir import Workdir


@pytest.fixture(scope="module")
def work(steered):
    return Workdir.open(steered)


def some_episodes(work, number):
    return episodes_of(work.dataset.splits["test"], np.arange(number), 0, 3)


def test_choices_in_the_prompt_change_what_the_base_says(work):
    assert in_context_prompt("q", []) == "q"
    shown = in_context_prompt("q", [("p", "yes", "no")])
    assert shown.index("yes") < shown.index("no") < shown.index("Question: q")
    log_p = in_context_predictor(work.task).predict(some_episodes(work, 2), (0, 1)).log_p
    np.testing.assert_allclose(log_p[0], np.log(0.5), atol=1e-5)
    assert np.abs(log_p[1] - np.log(0.5)).max() > 1e-4


def test_the_prompt_names_all_that_was_offered(work, monkeypatch):
    episodes = some_episodes(work, 2)
    context, texts = episodes.context, work.dataset.texts
    others = np.random.default_rng(0).integers(0, len(texts), (*context.mask.shape, 2))
    listed = np.broadcast_to([True, False], others.shape)
    asked = []
    monkeypatch.setattr(in_context, "in_context_prompt", lambda *shown: asked.append(in_context_prompt(*shown)) or "q")
    several = dataclasses.replace(episodes, context=dataclasses.replace(context, others=others, listed=listed))
    in_context_predictor(work.task).predict(several, (1,))
    chosen, rejected, other, padding = (
        texts[int(i)][1] for i in (context.chosen[0, 0], context.rejected[0, 0], *others[0, 0])
    )
    answers = f"Preferred answer: {chosen}\nOther answer: {rejected}\nOther answer: {other}\n\n"
    assert any(answers in prompt for prompt in asked)
    assert padding not in (chosen, rejected, other)
    assert not any(f"{answers[:-1]}Other answer: {padding}" in prompt for prompt in asked)


def test_a_prompt_that_does_not_fit_with_any_choice_is_cut(work):
    predictor = in_context_predictor(work.task)
    texts = work.dataset.texts
    before = list(texts)
    episodes = some_episodes(work, 1)
    target = int(episodes.targets.chosen[0, 0])
    try:
        texts[target] = (before[target][0] + " word1" * 200, before[target][1])
        log_p = predictor.predict(episodes, (0, 1)).log_p
    finally:
        texts[:] = before
    assert np.isfinite(log_p).all()
