"""Steering weights: one small directory that does what the work directory does, for any person."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fssa_jax
from fssa_jax.config import BayesEncoder, DiscretePrior, LoraCore, NpBtl
from fssa_jax.experiment.steering import is_steering, load_steering, pairs_of, save_steering
from fssa_jax.experiment.train import train
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.lm.base import load_base
from fssa_jax.lm.peft import is_lora, save_lora
from fssa_jax.people.ask import ask, questions
from tests import tiny, tiny_policy
from tests.lm.test_peft import factors
from tests.mistakes import complaint
from tests.programs import assert_one_clear_line, run
from tests.trees import assert_same

CHOICES = [("question 0", "word3 word4 word5 word6 word7", "word1 word2"), ("question 1", "word2 word3 word9", "word8")]


@pytest.fixture(scope="module")
def made(steered):
    return Workdir.open(steered)


@pytest.fixture(scope="module")
def weights(made, tmp_path_factory):
    out = tmp_path_factory.mktemp("steering") / "tiny"
    size = save_steering(made, out, pairs=5, notes="Seen by nobody.")
    own = [file for file in out.iterdir() if file.name not in ("README.md", "digests.json")]
    assert size == sum(file.stat().st_size for file in own)
    return out


def test_they_do_what_the_work_directory_does(weights, steered):
    """The same latents, adapters, scores, ranks and texts, of texts that training had and of new ones."""
    one, other = fssa_jax.load(steered), fssa_jax.load(weights)
    a, b = one.infer(CHOICES), other.infer(CHOICES)
    np.testing.assert_allclose(a.mean, b.mean, atol=1e-5)
    assert float(jnp.abs(a.mean - other.infer([]).mean).max()) > 1e-4
    responses = [(prompt, chosen) for prompt, chosen, _ in CHOICES]
    np.testing.assert_allclose(one.score(a, responses), other.score(b, responses), atol=1e-4)
    prompts = ["question 3", "a new question"]
    assert one.generate(one.adapt(a), prompts, seed=2) == other.generate(other.adapt(b), prompts, seed=2)
    assert one.best_of(a, prompts, 3)[0][0][0] == other.best_of(b, prompts, 3)[0][0][0]


def test_pairs_are_of_many_prompts_and_name_nobody(weights, made):
    pairs = pairs_of(weights)
    assert 0 < len(pairs) <= 5
    assert all(set(pair) == {"prompt", "response_a", "response_b"} for pair in pairs)
    save_steering(made, weights.parent / "all", pairs=1000)
    prompts = {pair["prompt"] for pair in pairs_of(weights.parent / "all")}
    assert len({pair["prompt"] for pair in pairs}) == min(len(pairs), len(prompts))
    everything = "".join(file.read_text(errors="ignore") for file in weights.iterdir())
    people = [user for split in made.dataset.splits.values() for user in split.users]
    assert people
    assert not any(f'"{user}"' in everything for user in people)
    assert str(weights.parent) not in everything


def test_the_card_says_what_it_is(weights):
    card = (weights / "README.md").read_text()
    for word in (
        "# Steering weights for model",
        "Seen by nobody.",
        "step ",
        "launch.chat --steering=tiny",
        "fingerprint",
    ):
        assert word in card


def test_what_is_damaged_or_of_another_model_is_named(weights, made, steered, finished, tmp_path):
    for name, change, words in (
        ("steering.json", lambda content: content.replace('"step"', '"stop"'), "steering.json"),
        ("steering.safetensors", lambda content: content[: len(content) // 2], "damaged"),
        ("tfidf.json", lambda content: content[:-3], "damaged"),
    ):
        copy = tmp_path / name
        shutil.copytree(weights, copy)
        file = copy / name
        assert file.exists()
        if name.endswith("json"):
            file.write_text(change(file.read_text()))
        else:
            file.write_bytes(change(file.read_bytes()))
        assert words in complaint(load_steering, copy)
    facts = json.loads((weights / "steering.json").read_text())
    assert facts["base"] == made.task.base.fingerprint
    directory, _ = finished
    assert "not the work directory of a policy" in complaint(
        save_steering, Workdir.open(directory / "run"), tmp_path / "x"
    )
    assert not (tmp_path / "x").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("mine")
    assert "holds other files" in complaint(save_steering, made, tmp_path / "mine")
    assert not is_steering(steered)


@pytest.mark.parametrize("lapses", [False, True])
def test_every_parameter_comes_back_as_it_was(finished, tiny_base, tmp_path, lapses):
    """Scalars too: those of a `BayesEncoder` have no axes."""
    reward = tiny.config(finished[0] / "rows.jsonl")
    encoder = BayesEncoder(prior=DiscretePrior(kinds=5), lapses=lapses)
    reward.model = NpBtl(encoder=encoder, response="linear", width=8)
    train(reward, tmp_path / "reward")
    config = tiny_policy.config(finished[0] / "rows.jsonl", tiny_base, tmp_path / "reward")
    config.train.specialist_steps = config.train.population_steps = 0
    train(config, tmp_path / "policy")
    work = Workdir.open(tmp_path / "policy")
    save_steering(work, tmp_path / "weights")
    one, other = work.person(), load_steering(tmp_path / "weights")
    assert_same(jax.tree.map(np.asarray, one._variables), jax.tree.map(np.asarray, other._variables))
    np.testing.assert_allclose(one.infer(CHOICES).mean, other.infer(CHOICES).mean, atol=1e-6)


@pytest.fixture(scope="module")
def on_a_lora(finished, tiny_base, tmp_path_factory):
    """The work directory of a policy whose base is a LoRA."""
    where = tmp_path_factory.mktemp("on a lora")
    base = load_base(str(tiny_base))
    save_lora(where / "lora", factors(base.decoder.config, 2, 0), base.decoder.config, str(tiny_base))
    config = tiny_policy.config(finished[0] / "rows.jsonl", where / "lora", finished[0] / "run")
    config.train.specialist_steps = config.train.population_steps = 0
    config.policy.adapter = LoraCore(rank=2, places=("query", "down"))
    train(config, where / "policy")
    return where / "policy"


def test_steering_weights_bring_the_lora_below_them(on_a_lora, tiny_base, tmp_path):
    save_steering(Workdir.open(on_a_lora), tmp_path / "weights")
    shutil.rmtree(on_a_lora.parent / "lora", ignore_errors=False)
    assert is_lora(tmp_path / "weights")
    assert load_base(str(tmp_path / "weights")).directory == load_base(str(tiny_base)).directory
    assert "a LoRA for everybody" in (tmp_path / "weights" / "README.md").read_text()
    policy = load_steering(tmp_path / "weights")
    plain = load_base(str(tiny_base))
    assert policy.task.base.fingerprint != plain.fingerprint
    moved = shutil.copytree(tiny_base, tmp_path / "moved")
    again = load_steering(tmp_path / "weights", str(moved))
    a, prompts = policy.infer(CHOICES), ["question 3", "a new question"]
    written = policy.generate(policy.adapt(a), prompts, seed=2)
    assert again.generate(again.adapt(a), prompts, seed=2) == written
    policy.export(a, tmp_path / "person")
    alone = load_base(str(tmp_path / "person"))
    tokens = jnp.array([[3, 1, 4, 1, 5]])
    expected = plain.decoder.apply(policy.task.base.variables, tokens, policy.adapt(a))[1]
    np.testing.assert_allclose(alone.decoder.apply(alone.variables, tokens)[1], expected, atol=1e-4)
    assert str(tiny_base) in (tmp_path / "person" / "adapter_config.json").read_text()
    damaged = tmp_path / "weights" / "adapter_model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert "adapter_model.safetensors" in complaint(load_steering, tmp_path / "weights")


def answers(*given):
    """A person who answers so, and then is gone."""
    left = iter(given)

    def read(question):
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    return read


PAIRS = [{"prompt": f"question {i}", "response_a": f"word{i}", "response_b": f"word{i + 1} word3"} for i in range(4)]


@pytest.mark.parametrize(
    ("given", "number", "choices"),
    [
        (("1", "2", "1", "2"), 3, [0, 1, 0]),
        (("", "no", "2", "s", "1"), 9, [1, 0]),
        (("1", "q", "2"), 9, [0]),
        (("2",), 9, [1]),
        ((), 9, []),
        (("1",), 0, []),
    ],
)
def test_a_person_chooses_skips_and_stops(given, number, choices):
    said = []
    rows = ask(PAIRS, number, answers(*given), said.append)
    assert [row["choice"] for row in rows] == choices
    assert all(row["prompt"].startswith("question") for row in rows)


def test_a_pair_that_is_none_is_named():
    assert complaint(ask, [*PAIRS, {"prompt": "x", "response_a": "y"}], 3).startswith("pair 4: column 'response_b'")
    for pair, words in (
        ("x", "not a row"),
        ({"prompt": "x", "response_a": "y", "response_b": "y"}, "two different texts"),
        ({"prompt": "x", "response_a": "y", "response_b": 3}, "two different texts"),
        ({"prompt": 3, "response_a": "y", "response_b": "z"}, "the prompt must be a text"),
    ):
        assert words in complaint(ask, [pair], 3)
    assert "no pairs" in complaint(ask, [], 3)


def test_questions_end_with_an_empty_one_or_with_nobody():
    assert list(questions(answers("how?", " why? ", "", "never"))) == ["how?", "why?"]
    assert list(questions(answers("how?"))) == ["how?"]


def test_the_program_asks_nobody_and_writes_before_and_after(weights, tmp_path):
    choices = tmp_path / "me.jsonl"
    rows = [{"prompt": x, "response_a": a, "response_b": b, "choice": 0} for x, a, b in CHOICES]
    choices.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run("chat", f"--steering={weights}", f"--choices={choices}", "--prompt=question 5", "--max_new=4")
    assert done.returncode == 0, done.stderr
    assert "2 choices." in done.stdout
    assert "before any choice:" in done.stdout
    assert "after 2 choices:" in done.stdout
    for arguments, words in (
        ((f"--steering={weights}", f"--choices={choices}", "--save=x.jsonl"), "--choices"),
        ((f"--steering={tmp_path / 'absent'}", f"--choices={choices}"), "absent"),
        ((f"--steering={tmp_path / 'absent'}",), "no such directory"),
        ((f"--steering={weights}", "--n=99"), "at most"),
        ((), "--steering"),
    ):
        assert_one_clear_line(run("chat", *arguments), words)


def test_the_program_that_writes_them(steered, tmp_path):
    done = run("convert", f"--steering={steered}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert is_steering(tmp_path / "out")
    assert_one_clear_line(run("convert", f"--steering={steered}"), "--out")
