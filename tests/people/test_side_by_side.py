"""Responses side by side, from the library and from launch.steer."""

import dataclasses
import json

import numpy as np
import pytest

import fssa_jax
from fssa_jax.config import NewEncoder
from fssa_jax.people.choices import read_choices
from fssa_jax.people.side_by_side import Written, format_written, write_for
from fssa_jax.tasks.policy import reads_new_texts
from fssa_jax.types import DiagGaussian
from tests import tiny
from tests.mistakes import complaint
from tests.programs import assert_one_clear_line, run


@pytest.fixture
def files(tmp_path):
    """Choices of two people."""
    rows = tiny.rows(users=2)
    return [str(tiny.write_rows(tmp_path / f"p{u}.jsonl", rows[14 * u : 14 * u + 3])) for u in (0, 1)]


def test_a_person_writes_before_and_after_and_two_people_blend(steered, files, tmp_path):
    policy = fssa_jax.load(steered)
    people = {file: read_choices(file) for file in files}
    one = {files[0]: people[files[0]]}
    [written] = write_for(policy, ["question 0"], one, counted=True)
    assert [w.name for w in written] == ["before any choice", "after 3 choices"]
    [written] = write_for(policy, ["question 0"], people)
    assert [w.name for w in written] == ["before any choice", *files]
    [blended] = write_for(policy, ["question 0"], people, shares=[0, 0.5, 1])
    assert [w.name.split(" · ")[0] for w in blended] == ["1", "0.5", "0"]
    assert [w.share for w in blended] == [0, 0.5, 1]
    # At both ends it is what either is written.
    assert [blended[0].text, blended[2].text] == [w.text for w in written[1:]]
    talk = [{"role": "system", "content": "word1"}, {"role": "user", "content": "question 0"}]
    [written] = write_for(policy, [talk], one, sampling={"temperature": 0.0})
    adapter = policy.adapt(policy.infer(one[files[0]]))
    greedy = dataclasses.replace(policy.task.config.evaluate.generate, temperature=0.0)
    assert [written[1].text] == policy.generate(adapter, [talk], settings=greedy)
    assert json.loads(format_written([talk], [written], as_json=True))["prompt"] == talk
    for number in (1, 2):  # at strength 0 a person gets what the language model writes for everybody
        [unsteered] = write_for(policy, ["question 0"], one, sampling={"temperature": 0.0}, strength=0.0, number=number)
        assert [each.text for each in unsteered] == policy.generate(None, ["question 0"] * 2, settings=greedy)
    long = str(tiny.write_rows(tmp_path / "long.jsonl", tiny.rows(users=1)[:10]))
    many = {long: read_choices(long)}
    assert complaint(lambda: write_for(policy, ["q"], many)).startswith(f"{long}: 10 choices of a person")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert str(empty) in complaint(read_choices, str(empty))


def test_the_best_of_several_is_what_the_reward_model_prefers(steered, files):
    policy = fssa_jax.load(steered)
    latent = policy.infer(read_choices(files[0]))
    settings = dataclasses.replace(policy.task.config.evaluate.generate, temperature=1.5, max_new=6)
    talk = [{"role": "system", "content": "word1"}, {"role": "user", "content": "question 0"}]
    ranked = policy.best_of(latent, ["question 0", talk], 5, seed=3, settings=settings)
    assert len(ranked) == 2
    texts = [[text for text, _ in one] for one in ranked]
    assert all(len(set(one)) == len(one) > 1 for one in texts)
    rewards = [[reward for _, reward in one] for one in ranked]
    assert all(sorted(one, reverse=True) == one for one in rewards)
    singles = [
        policy.generate(policy.adapt(latent), ["question 0"], seed=3 + i, settings=settings)[0] for i in range(5)
    ]
    assert set(texts[0]) == set(singles)
    # The reward model that the policy was trained with reads the same texts in the same order.
    reward = fssa_jax.load(policy.task.config.encoder.init_from)
    z = DiagGaussian(latent.mean, latent.scale)
    whole = [(text, value) for text, value in ranked[0] if text.strip()]
    expected = reward.score(z, [("question 0", text) for text, _ in whole])
    found = np.array([value for _, value in whole])
    np.testing.assert_allclose(found - found[0], expected - expected[0], atol=1e-4)
    [one] = write_for(policy, ["question 0"], {"a": read_choices(files[0])}, number=5, seed=3)
    assert [len(w.ranked) > 1 for w in one] == [True, True]
    assert one[1].text == one[1].ranked[0][0]
    assert "best of" in format_written(["question 0"], [one], as_json=False)
    listed = json.loads(format_written(["question 0"], [one], as_json=True))["responses"][1]["ranked"]
    assert [item["text"] for item in listed] == [text for text, _ in one[1].ranked]
    assert "from 1 up" in complaint(policy.best_of, latent, ["q"], 0)
    two = policy.infer_people([[], []])
    assert "one person at a time" in complaint(policy.best_of, two, ["q"])
    new = NewEncoder(model=reward.task.config.model)
    for encoder in (new, dataclasses.replace(new, auxiliary_weight=1.0)):
        task = dataclasses.replace(policy.task, config=dataclasses.replace(policy.task.config, encoder=encoder))
        assert reads_new_texts(task) == bool(encoder.auxiliary_weight)  # otherwise its rewards are never trained
    policy.task = dataclasses.replace(policy.task, config=dataclasses.replace(policy.task.config, encoder=new))
    assert "no trained reward model that reads new texts" in complaint(policy.best_of, latent, ["q"])


@pytest.mark.experiments
def test_the_program_writes_and_names_what_does_not_fit(steered, finished, files, tmp_path):
    one, two = files
    base = ("steer", f"--workdir={steered}", "--prompt=question 0", "--max_new=4")
    done = run(*base, f"--people={one},{two}", "--blend=0,1", "--json")
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.strip().splitlines()
    said = json.loads(line)["responses"]
    assert [response["share"] for response in said] == [0, 1]
    assert all(response["text"] and response["for"] for response in said)
    system = run(*base, f"--people={one}", "--system=word1", "--json")
    assert json.loads(system.stdout)["prompt"][0] == {"role": "system", "content": "word1"}
    assert_one_clear_line(run(*base, f"--people={one}", "--system="), "--system: empty")
    best = run(*base, f"--people={one}", "--best_of=3", "--temperature=1", "--json")
    assert json.loads(best.stdout)["responses"][1]["ranked"], best.stderr
    assert_one_clear_line(run(*base, f"--people={one}", "--best_of=0"), "--best_of")
    assert_one_clear_line(run(*base, f"--people={one},"), "--people: a name is empty")
    assert_one_clear_line(run(*base, f"--people={one}", f"--choices={two}"), "one of --choices and --people, not both")
    assert_one_clear_line(run(*base, f"--choices={one}", "--temperature=nan"), "--temperature: must be a number")
    assert_one_clear_line(run(*base, f"--choices={one}", "--strength=inf"), "--strength: must be a number")
    assert_one_clear_line(run(*base, f"--choices={one}", "--prompt= "), "--prompt: empty")
    assert_one_clear_line(run(*base, f"--choices={one}", "--max_new=300"), "prompt 'question 0': ", "lower --max_new")
    assert_one_clear_line(run(*base, f"--people={one}", "--blend=0,1"), "--blend", "two files in --people, got 1")
    nobody = tmp_path / "nobody.jsonl"
    nobody.write_text("")
    assert_one_clear_line(run(*base, f"--choices={nobody}"), str(nobody), "no usable row")
    for share in ("half", "nan"):
        assert_one_clear_line(run(*base, f"--people={one},{two}", f"--blend=0,{share}"), "--blend: needs numbers")
    for share in (1.5, -0.25):
        wrong = run(*base, f"--people={one},{two}", f"--blend=0,{share}")
        assert_one_clear_line(wrong, f"--blend: {share:g} is no share of the second person; give numbers from 0 to 1")
    assert_one_clear_line(run(*base, f"--choices={one}", "--trace"), "--trace: has no effect with --prompt")
    ranking = ("steer", f"--workdir={steered}", f"--choices={one}", f"--responses={two}", "--blend=0,1")
    assert_one_clear_line(run(*ranking), "--blend: has no effect with --responses")
    reward = ("steer", f"--workdir={finished[0] / 'run'}", "--prompt=question 0", f"--choices={one}")
    assert_one_clear_line(run(*reward), "a reward model ranks responses but writes none")


@pytest.mark.experiments
def test_the_program_ranks_with_a_policy(steered, files, tmp_path):
    """By β log-ratios; the same as the library says."""
    texts = ("word1 word2", "word3 " * 9, "new words here")
    candidates = [{"prompt": "question 0", "response": text} for text in texts]
    responses = tiny.write_rows(tmp_path / "candidates.jsonl", candidates)
    done = run("steer", f"--workdir={steered}", f"--choices={files[0]}", f"--responses={responses}", "--json")
    assert done.returncode == 0, done.stderr
    ranking = json.loads(done.stdout)
    assert sorted(ranking["responses"]) == sorted(texts)
    assert sum(ranking["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert ranking["rewards"] == sorted(ranking["rewards"], reverse=True)
    policy = fssa_jax.load(steered)
    expected = policy.score(policy.infer(read_choices(files[0])), [("question 0", t) for t in ranking["responses"]])
    assert ranking["rewards"] == pytest.approx(expected.tolist(), abs=1e-4)
    table = run("steer", f"--workdir={steered}", f"--choices={files[0]}", f"--responses={responses}", "--trace")
    assert "After 3 choices" in table.stdout


def test_responses_side_by_side_show_control_characters():
    text = format_written(["p\x1b[2J"], [[Written("ann\r", "a\x1b[31m\nb")]], as_json=False)
    assert text.splitlines() == ["p\\x1b[2J", "  ann\\r:", "    a\\x1b[31m", "b"]
