"""One person: the same calls for a reward model and a policy, which also adapts, writes and exports."""

import dataclasses
import doctest
import json
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fssa_jax
from fssa_jax.config import Lora, NoEncoder, SftConfig
from fssa_jax.data.rows import Row
from fssa_jax.experiment.train import train
from fssa_jax.experiment.warm_start import teacher_variables
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.lm.base import load_base
from fssa_jax.people import blend as blending
from fssa_jax.people.blend import blend
from fssa_jax.people.choices import read_choices
from fssa_jax.people.person import PersonModel, PersonPolicy
from fssa_jax.tasks.policy import TEACHER, PolicyTask
from fssa_jax.tasks.sft import SftTask
from fssa_jax.types import Comparisons, DiagGaussian
from tests import tiny, tiny_policy
from tests.mistakes import complaint

CHOICES = [(f"question {i}", "word1 word2 word3", "word4 " * 9) for i in range(3)]


@pytest.fixture(scope="module")
def work(steered):
    return Workdir.open(steered)


@pytest.fixture(scope="module")
def moved(work):
    return tiny_policy.moved(work.trained()[0])


def test_the_four_calls(work, moved, tmp_path):
    policy = PersonPolicy(work.task, moved)
    rows = tiny.rows(users=2)
    choices = [read_choices(str(tiny.write_rows(tmp_path / f"{u}.jsonl", rows[14 * u : 14 * u + 3]))) for u in (0, 1)]
    nobody, one, two = (policy.infer(c) for c in ([], *choices))
    assert one.mean.shape == (1, 8)
    assert float(jnp.abs(one.mean - nobody.mean).max()) > 1e-3
    assert one.scale.min() > 0
    np.testing.assert_allclose(policy.infer(choices[0][::-1]).mean, one.mean, atol=1e-5)
    together = policy.infer_people([[], *choices])
    np.testing.assert_allclose(together.mean, jnp.concatenate([q.mean for q in (nobody, one, two)]), atol=1e-5)
    new = [("question 0", "word1 of a new text", "word2 of another"), ("question 1", "word3 word4", "word2 of another")]
    mixed = [[new[0]], [choices[0][0], *new], [new[1]]]
    for alone, row in zip(mixed, policy.infer_people(mixed).mean, strict=True):
        np.testing.assert_allclose(policy.infer(alone).mean[0], row, atol=1e-5)
    assert "a choice instead of a person" in complaint(policy.infer_people, new)
    long = [("question 0", f"word1 word{i}", "word2") for i in range(policy.window + 1)]
    assert "choices of person 1, but the policy was made for" in complaint(policy.infer_people, [[], long])
    assert "no people to infer" in complaint(policy.infer_people, [])
    responses = [(rows[0]["prompt"], rows[0][n]) for n in ("response_a", "response_b")]
    # Texts that are in the table are scored as the table is.
    scorer = work.task.scorer("main", work.dataset.splits["test"])
    ids = np.array([work.dataset.texts.index(r) for r in responses])
    ratios = scorer.log_ratios(moved, np.asarray(one.mean), np.zeros(2, int), ids)
    expected = work.config.objective.beta * ratios
    np.testing.assert_allclose(policy.score(one, responses), expected, atol=1e-4)
    between = blend([one, two], [0.5, 0.5])
    np.testing.assert_allclose(between.mean, (one.mean + two.mean) / 2)
    texts = policy.generate(policy.adapt(between), ["question 0", "question 1"], seed=3)
    assert len(texts) == 2
    both = DiagGaussian(*(jnp.concatenate([getattr(q, n) for q in (one, two)]) for n in ("mean", "scale")))
    people = policy.adapt(both)
    assert "adapters of 2 people for 4 prompts" in complaint(policy.generate, people, ["question 0"] * 4)
    half = policy.adapt(both, strength=0.5)
    for place, adapter in people.items():  # these are FiLM: the identity is scale 1 and shift 0
        np.testing.assert_allclose(half[place].scale - 1, (adapter.scale - 1) / 2, atol=1e-6)
        np.testing.assert_allclose(half[place].shift, adapter.shift / 2, atol=1e-6)
    plain = policy.generate(None, ["question 0"], seed=3)
    assert policy.generate(policy.adapt(one, strength=0.0), ["question 0"], seed=3) == plain
    for wrong in (-1.0, float("nan"), float("inf")):
        assert "give a number from 0 up" in complaint(policy.adapt, one, wrong)
    wider = jax.tree.map(lambda x: jnp.concatenate([x, x], -1), people)
    assert "are for another model: 2 layers of 16 → 32; this one has 2 of 16 → 16" in complaint(
        policy.generate, wider, ["question 0"] * 2
    )
    assert "10 choices" in complaint(policy.infer, [("p", f"a{i}", "b") for i in range(10)])
    assert policy.score(one, []).shape == (0,)
    assert "one prompt instead of a list" in complaint(policy.generate, None, "question 0")
    for wrong in (responses[0], [("question 0",)], [("question 0", None)]):
        assert "response 0: needs two texts, (prompt, response)" in complaint(policy.score, one, wrong)
    assert "give [(prompt, response)]" in complaint(policy.score, one, "word1")
    assert "FiLM" in complaint(policy.export, one, tmp_path / "lora")
    assert "a latent instead of adapters" in complaint(policy.generate, one, ["question 0"])
    assert policy.generate(policy.adapt(one), []) == []
    assert "choice 0 of a person: needs three texts" in complaint(policy.infer, [("question 0", "word1")])
    assert "choice 1 of a person: the responses are empty or identical" in complaint(
        policy.infer, [choices[0][0], ("question 0", "word1", "word1")]
    )
    for action in (lambda: policy.score(both, responses), lambda: policy.export(both, tmp_path / "lora")):
        assert "a latent of 2 people" in complaint(action)
    assert "1 weights for 2 people" in complaint(blend, [one, two], [1.0])
    assert "no people to blend" in complaint(blend, [], [])
    assert "weights [nan, 1.0]" in complaint(blend, [one, two], [float("nan"), 1.0])


def test_a_reward_model_and_a_policy_give_the_same_calls(finished, steered):
    """The policy's encoder is the reward model's as it is: one person has one latent in both."""
    reward, policy = fssa_jax.load(finished[0] / "run"), fssa_jax.load(str(steered))
    assert type(reward) is PersonModel
    assert type(policy) is PersonPolicy
    responses = [("question 0", "word1 word5"), ("question 1", "word2 of a new text")]
    for choices in ([], CHOICES[:1], CHOICES):
        mine, theirs = reward.infer(choices), policy.infer(choices)
        np.testing.assert_allclose(mine.mean, theirs.mean, atol=1e-5)
        np.testing.assert_allclose(mine.scale, theirs.scale, atol=1e-5)
        assert reward.score(mine, responses).shape == policy.score(theirs, responses).shape == (2,)
    people = [[], CHOICES[:2], CHOICES]
    np.testing.assert_allclose(reward.infer_people(people).mean, policy.infer_people(people).mean, atol=1e-5)
    for person in (reward, policy):
        latents = person.infer_people(people)
        rewards = person.sampled_rewards(latents, responses)
        assert rewards.shape[1:] == (3, 2)
        # Of many people at once, what each alone is told.
        for row, choices in enumerate(people):
            alone = person.sampled_rewards(person.infer(choices), responses)
            np.testing.assert_allclose(rewards[:, row], alone[:, 0], atol=1e-4)


@pytest.mark.parametrize("kind", ["reward", "policy"])
def test_choices_are_tuples_or_rows_in_either(finished, steered, kind):
    person = fssa_jax.load(finished[0] / "run" if kind == "reward" else steered)
    records = [{"prompt": p, "response_a": b, "response_b": a, "choice": 1} for p, a, b in CHOICES]
    expected = person.infer(CHOICES)
    for choices in (records, [Row("somebody", *choice) for choice in CHOICES], [records[0], *CHOICES[1:]]):
        np.testing.assert_allclose(person.infer(choices).mean, expected.mean, atol=1e-6)
    np.testing.assert_allclose(person.infer_people([records, []]).mean[:1], expected.mean, atol=1e-5)
    np.testing.assert_allclose(person.infer([*records, records[0]]).mean, expected.mean, atol=1e-6)
    assert "choice 1 of a person" in complaint(person.infer, [records[0], {**records[1], "choice": "first"}])


def test_a_reward_model_writes_nothing_and_a_language_model_is_no_policy(finished, work, tiny_base):
    directory, _ = finished
    for name in ("adapt", "generate", "export"):
        assert not hasattr(fssa_jax.load(directory / "run"), name)
    assert "no config.json" in complaint(fssa_jax.load, directory / "absent")
    assert "a language model; give the work directory of a policy" in complaint(fssa_jax.load, tiny_base)
    task = work.task
    plain = dataclasses.replace(task, config=dataclasses.replace(task.config, encoder=NoEncoder()))
    assert "a policy for everybody reads no choices" in complaint(dataclasses.replace(work, task=plain).person)
    sft = SftTask(SftConfig(), work.dataset, task.base, task.tokens)
    assert "a language model reads no choices" in complaint(dataclasses.replace(work, task=sft).person)


def test_what_is_not_trained_to_its_end_says_so(finished, steered, tmp_path, caplog):
    for name, trained in (("reward", finished[0] / "run"), ("policy", steered)):
        shutil.copytree(trained, tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        for steps in ("steps", "population_steps"):
            config["train"][steps] = 600
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        tiny.reseal(tmp_path / name)
        caplog.clear()
        with caplog.at_level("WARNING", "fssa_jax"):
            fssa_jax.load(tmp_path / name)
        [said] = caplog.messages  # of what is loaded, and nothing of what it is compared with
        assert said.startswith("main model: ")
        assert "600" in said


def test_every_call_has_an_example():
    """They run in test_examples.py."""
    for kind, names in (
        (PersonModel, ["", "infer", "infer_people", "score"]),
        (PersonPolicy, ["", "adapt", "best_of", "generate"]),
    ):
        tests = doctest.DocTestFinder(exclude_empty=True).find(kind, name="it")
        assert [t.name.partition(".")[2] for t in tests if t.examples] == names
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        [test] = doctest.DocTestFinder().find(blend, name="blend", module=blending, globs={})
        assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.parametrize("learn_texts", ["no", "yes"])
def test_a_person_is_inferred_from_the_texts_as_they_are_numbered_in_training(work, learn_texts):
    """With a learnt embedding a text says more than its features: it must be found under its number."""
    task = tiny_policy.with_encoder(work.task, work.config.encoder.model.encoder, learn_texts=learn_texts)
    assert bool(task.reward.learnt_texts) == (learn_texts == "yes")
    keys = iter(jax.random.split(jax.random.key(0), 200))
    variables = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape), task.start("main", {}))
    table, texts = work.dataset.splits["test"].table, work.dataset.texts
    chosen, rejected = (jnp.asarray(side[:1, 0, :3]) for side in (table.chosen, table.rejected))
    context = Comparisons(chosen, rejected, jnp.ones((1, 3), bool))
    features = jnp.asarray(work.dataset.features)
    expected: Any = task.conditioner().apply(variables, context, features, method="infer")
    choices = [(*texts[a], texts[b][1]) for a, b in zip(chosen[0], rejected[0], strict=True)]
    policy = PersonPolicy(task, variables)
    np.testing.assert_allclose(policy.infer(choices).mean, expected.mean, atol=1e-5)
    assert float(jnp.abs(expected.mean - policy.infer([]).mean).max()) > 1e-2
    reward = PersonModel(task, task.reward, task.reward, {"params": variables["params"]["reward"]})
    np.testing.assert_allclose(reward.infer(choices).mean, expected.mean, atol=1e-5)
    # New texts come after all others: known by their features, and by no embedding of another text.
    new = [("a new question", "word1 of a new text"), ("a new question", "word2 word3")]
    wider = jnp.concatenate([features, jnp.asarray(work.dataset.featuriser.transform(new))])
    ids = jnp.array([[len(texts)]]), jnp.array([[len(texts) + 1]])
    expected = task.conditioner().apply(variables, Comparisons(*ids, jnp.ones((1, 1), bool)), wider, method="infer")
    np.testing.assert_allclose(policy.infer([(*new[0], new[1][1])]).mean, expected.mean, atol=1e-5)


def test_a_low_rank_policy_of_a_base_in_bfloat16_writes_and_leaves_as_a_lora(work, tmp_path):
    settings = dataclasses.replace(work.config.policy, adapter=Lora(places=("query", "gate")), dtype="bfloat16")
    config = dataclasses.replace(work.config, policy=settings)
    base = dataclasses.replace(load_base(settings.base, settings.dtype), directory=tmp_path / "snapshot of the hub")
    task = PolicyTask(config, work.dataset, base, work.task.tokens, work.task.reference)
    variables = task.start("main", {TEACHER: teacher_variables(config)})
    policy = PersonPolicy(task, jax.tree.map(lambda x: x + 0.2, variables))
    latent = policy.infer([])
    texts = policy.generate(policy.adapt(latent), ["question 0"], seed=1)
    assert texts == policy.generate(policy.adapt(latent), ["question 0"], seed=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("mine")
    assert "holds other files" in complaint(policy.export, latent, tmp_path / "mine")
    assert "is a file" in complaint(policy.export, latent, tmp_path / "mine" / "precious.txt")
    assert (tmp_path / "mine" / "precious.txt").read_text() == "mine"
    for _ in range(2):  # a LoRA of its own may be written anew
        policy.export(latent, tmp_path / "lora")
    written = policy.export(latent, tmp_path / "loras", name="../ann é")
    assert written == tmp_path / "loras" / "ann-é"
    card = (written / "README.md").read_text()
    assert settings.base in card  # what was given, not where the hub's copy is kept
    assert "snapshot of the hub" not in card
    assert json.loads((written / "adapter_config.json").read_text())["base_model_name_or_path"] == settings.base
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert (tmp_path / "lora" / "adapter_model.safetensors").stat().st_size > 1000


@pytest.mark.experiments
def test_choices_are_read_by_the_language_model_itself(finished, tiny_base, tmp_path):
    """No second model: features are the base's own states, of new texts too, and after a move."""
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    config = tiny_policy.config(finished[0] / "rows.jsonl", base, steps=2, population_steps=0, specialist_steps=0)
    config.data.features, config.data.text_encoder.name = "encoder", str(base)
    config.data.text_encoder.pool, config.data.text_encoder.layer = "response", 1
    train(config, tmp_path / "run")
    shutil.move(base, tmp_path / "elsewhere")
    policy = fssa_jax.load(tmp_path / "run", str(tmp_path / "elsewhere"))
    known = policy.task.dataset
    assert known.features.shape[1] == policy.task.base.decoder.config.width
    np.testing.assert_allclose(known.featuriser.transform(known.texts[:3]), known.features[:3], atol=1e-5)
    choice = ("question 0", "word1 of a new text", "word2 of another")
    assert float(jnp.abs(policy.infer([choice]).mean - policy.infer([choice[:1] + choice[:0:-1]]).mean).max()) > 1e-4
