"""What a policy implies and writes: scores beside everything, generation, the report, and the four calls."""

import copy
import dataclasses
import doctest
import json
import shutil
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fssa_jax.evaluate.policy import drift
from fssa_jax.evaluate.policy_scores import PolicyScorer
from fssa_jax.evaluate.predictor import evaluation_episodes
from fssa_jax.experiment.policy_workdir import PolicyWorkdir
from fssa_jax.experiment.trained_policy import TrainedPolicy, trained_policies, trained_policy
from fssa_jax.report.policy import evaluate_workdir, format_generation, generation_table, steering_warnings

from fssa_jax.data.benchmarks import styles
from fssa_jax.evaluate import policy_scores as score
from fssa_jax.evaluate.controls import scrambled_context
from fssa_jax.evaluate.in_context import in_context_predictor, in_context_prompt
from fssa_jax.evaluate.written import written_for
from fssa_jax.experiment import train_policy as training
from fssa_jax.lm.base import load_base, reference_log_probs, tokenise
from fssa_jax.lm.tokenizer import prompt_tokens
from fssa_jax.lm.writer import Samples, Writer, best_reward, movement, sampled_kl, styles_of, true_reward
from fssa_jax.ops.episodes import truncate_context
from fssa_jax.ops.metrics import preference_accuracy
from fssa_jax.people import person as steer
from fssa_jax.people.person import Steerer, as_choices, blended
from fssa_jax.people.rank import read_choices
from fssa_jax.people.side_by_side import write_for
from fssa_jax.tasks.policy import text_log_probs
from fssa_jax.types import Comparisons, DiagGaussian
from tests import tiny, tiny_policy
from tests.mistakes import complaint
from tests.programs import assert_one_clear_line, run
from tests.tiny_policy import change


@pytest.fixture(scope="module")
def work(steered):
    return PolicyWorkdir.open(steered)


@pytest.fixture(scope="module")
def moved(work):
    """The policy, away from the identity so that the person matters."""
    policy = trained_policy(work)
    hyper = policy.variables["params"]["hyper"]
    keys = jax.random.split(jax.random.key(0), len(jax.tree.leaves(hyper)))
    noise = [x + 0.5 * jax.random.normal(k, x.shape) for x, k in zip(jax.tree.leaves(hyper), keys, strict=True)]
    params = {**policy.variables["params"], "hyper": jax.tree.unflatten(jax.tree.structure(hyper), noise)}
    return dataclasses.replace(policy, variables={"params": params})


def episodes_of(work, number: int = 4):
    table = jax.tree.map(jnp.asarray, work.dataset.splits["test"].table)
    return evaluation_episodes(0, 0, table, jnp.arange(number), max_context=3)


def test_implied_preferences_are_the_log_ratios_one_by_one(work, moved):
    """Against a forward pass for each person and response by itself; contexts of every size, padding or not."""
    data, objective = work.data("test"), work.config.objective
    scorer = PolicyScorer(moved.conditioner, work.base.decoder, data, objective)
    episodes = episodes_of(work)
    log_p, latent, _ = scorer.predict(moved.variables, episodes, (0, 3))
    assert latent.shape[0] == 4
    for i, k in enumerate((0, 3)):
        q = moved.conditioner.apply(moved.variables, truncate_context(episodes, k), data.features, method="latent_of")
        for user in range(4):
            adapters = moved.conditioner.apply(moved.variables, q.mean[user : user + 1], method="adapt")
            pair = [int(side[user, 0]) for side in (episodes.targets.chosen, episodes.targets.rejected)]
            ratio = [
                float(text_log_probs(work.base.decoder, work.base.variables, data, jnp.array([t]), adapters)[0])
                - work.reference[t]
                for t in pair
            ]
            expected = -np.logaddexp(0, -objective.beta * (ratio[0] - ratio[1]))
            assert log_p[i, user, 0] == pytest.approx(expected, abs=2e-4)
    assert np.abs(log_p[0] - log_p[1]).max() > 1e-3


def test_implied_preferences_are_a_token_s_where_the_objective_is(work, moved):
    objective = dataclasses.replace(work.config.objective, length_normalised=True)
    plain, token = (
        PolicyScorer(moved.conditioner, work.base.decoder, work.data("test"), o).score(
            moved.variables, episodes_of(work), (3,)
        )
        for o in (work.config.objective, objective)
    )
    targets = episodes_of(work).targets
    ids = np.stack([np.asarray(targets.chosen), np.asarray(targets.rejected)], -1)
    tokens = (work.tokens.ends - work.tokens.starts)[ids]
    assert len(set(tokens.ravel().tolist())) > 1
    np.testing.assert_allclose(token.rewards[0] * tokens, plain.rewards[0], atol=1e-4)
    np.testing.assert_allclose(token.log_probs, plain.log_probs, atol=1e-3)


def test_what_only_rounding_parts_is_a_tie(work):
    """A policy that is its base prefers nothing: accuracy ½, not the sign of what sums were rounded to."""
    conditioner, _, state = training.make_state(work, "main", warm=True)  # the adapters are the identity
    scorer = PolicyScorer(conditioner, work.base.decoder, work.data("test"), work.config.objective)
    scores = scorer.score(jax.device_get(state.variables), episodes_of(work), (0, 3))
    assert np.abs(scores.rewards).max() > 0
    np.testing.assert_array_equal(preference_accuracy(jnp.asarray(scores.log_likelihood)), 0.5)


def test_however_texts_are_cut_into_calls_the_ratios_are_the_same(work, moved, monkeypatch):
    """Many small calls, the last one of each length filled up, and few people a call where adapters are large."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(3, work.config.model.encoder.latent_dim)).astype(np.float32)
    people, ids = rng.integers(0, 3, 29), rng.integers(0, len(work.dataset.texts), 29)

    def ratios(tokens=None):
        scorer = PolicyScorer(moved.conditioner, work.base.decoder, work.data("test"), work.config.objective)
        scorer._budget = tokens or scorer._budget
        return scorer.log_ratios(moved.variables, z, people, ids)

    whole = ratios()
    assert np.abs(whole).min() > 0
    np.testing.assert_allclose(ratios(200), whole, atol=1e-4)
    monkeypatch.setattr(score, "_ADAPTER_BYTES", 1)  # one sequence a call
    np.testing.assert_allclose(ratios(), whole, atol=1e-4)
    scorer = PolicyScorer(moved.conditioner, work.base.decoder, work.data("test"), work.config.objective)
    assert scorer.log_ratios(moved.variables, z, people[:0], ids[:0]).shape == (0,)


def test_the_memory_of_adapters_grows_with_the_device(monkeypatch):
    class Device:
        memory: ClassVar = None

        def memory_stats(self):
            return self.memory

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert score._adapter_budget() == 2**30  # a CPU does not say what it has
    monkeypatch.setattr(Device, "memory", {"bytes_limit": 80 * 2**30})
    assert score._adapter_budget() == 5 * 2**30


def test_the_reference_is_the_base_itself(work):
    rows = jnp.arange(5)
    own = text_log_probs(work.base.decoder, work.base.variables, work.data("test"), rows)
    np.testing.assert_allclose(own, work.reference[:5], atol=1e-4)


def test_generation_depends_on_the_person_and_has_the_divergence_of_its_samples(work, moved):
    settings = dataclasses.replace(work.config.evaluate.generate, max_new=6)
    writer = Writer(work.base, settings)
    z = np.random.default_rng(0).normal(size=(3, work.config.model.encoder.latent_dim)).astype(np.float32) * 3
    adapters = moved.conditioner.apply(moved.variables, jnp.asarray(z), method="adapt")
    samples = writer(["question 0"] * 3, adapters, seed=1)
    again = writer(["question 0"] * 3, adapters, seed=1)
    assert samples.tokens == again.tokens
    # Without chance, the same prompt is answered differently for other people alone.
    greedy = Writer(work.base, dataclasses.replace(settings, temperature=0.0))
    assert len(set(map(tuple, greedy(["question 0"] * 3, adapters).tokens))) > 1
    assert len(set(map(tuple, greedy(["question 0"] * 3, None).tokens))) == 1
    kl = sampled_kl(work.base, samples, adapters)
    end = samples.ends[0]
    row = [*samples.prompt_tokens[0], *samples.tokens[0], *([] if end is None else [end])]
    tree = jax.tree.map(lambda leaf: leaf[:, :1], adapters)
    logits = [work.base.decoder.apply(work.base.variables, jnp.asarray([row]), a)[0] for a in (tree, None)]
    start = len(samples.prompt_tokens[0])
    own, base = (sum(float(jax.nn.log_softmax(lp[i - 1])[row[i]]) for i in range(start, len(row))) for lp in logits)
    assert kl[0] == pytest.approx(own - base, abs=1e-3)


def test_a_prompt_that_leaves_no_room_is_cut_where_that_is_asked_for(work):
    settings = dataclasses.replace(work.config.evaluate.generate, max_new=6, temperature=0.0)
    long = "word1 " * 400 + "question 0"
    assert "do not fit into the 256 positions" in complaint(Writer(work.base, settings), [long], None)
    writer = Writer(work.base, settings, cut=True)
    samples = writer([long, "question 0"], None)
    assert len(samples.prompt_tokens[0]) == 250
    whole = prompt_tokens(work.base.tokenizer, long)
    assert samples.prompt_tokens[0] == whole[-250:]
    assert samples.prompt_tokens[1] == prompt_tokens(work.base.tokenizer, "question 0")
    assert writer.cut_prompts([long, "question 0"]) == 1


def test_who_has_no_specialist_is_left_out_of_what_specialists_write(work):
    """A group without training people has a latent that nobody trained."""
    table = work.dataset.splits["train"].table
    train = dataclasses.replace(work.dataset.splits["train"], table=dataclasses.replace(table, group=table.group * 0))
    dataset = dataclasses.replace(work.dataset, splits={**work.dataset.splits, "train": train})
    split, users = work.dataset.splits["test"], np.arange(2)
    group = np.asarray(split.table.group)[users]
    assert set(group.tolist()) == {0, 1}
    whole, written = written_for(work, split, trained_policies(work), users, work.config.evaluate)
    assert "oracle" in written["texts"]
    few, written = written_for(
        dataclasses.replace(work, dataset=dataset), split, trained_policies(work), users, work.config.evaluate
    )
    assert "oracle" not in written["texts"]  # side by side stand those who are written for by all
    assert few["policy"] == whole["policy"]
    assert few["oracle"]["kl"] != whole["oracle"]["kl"]


def test_movement_and_reward_of_known_styles():
    weights = np.array([[1, 0, -1, 0, 0], [-1, 0, 1, 0, 0]], np.float32)
    style = np.array([[1, 0, 0, 1, 0], [0, 0, 1, 1, 0]])
    out = movement(style, weights)
    assert out[0] == 1
    assert out[2] == 1
    assert np.isnan(out[1])
    np.testing.assert_allclose(true_reward(style, weights), styles.SCALE * np.ones(2))


def test_styles_are_read_back_from_every_text():
    texts, style_of, _ = styles.texts()
    for i in range(0, len(texts), 7):
        style, well = styles.style_of_text(*texts[i])
        assert well
        np.testing.assert_array_equal(style, style_of[i])
        broken, well = styles.style_of_text(texts[i][0], texts[i][1] + " zzz")
        assert not well
        np.testing.assert_array_equal(broken, style_of[i])
    prompt, response = texts[0]
    other = next(p for p, _ in texts if "chess" in p)
    assert not styles.style_of_text(other, response)[1]  # another topic's advice
    samples = Samples([prompt], [response], [[1]], [[2]], [None])
    assert styles_of(samples)[1].all()


def test_scrambled_contexts_have_the_same_sizes_and_nobodys_choices(work):
    context = episodes_of(work, 6).context
    mixed = scrambled_context(context, 0)
    np.testing.assert_array_equal(mixed.mask.sum(-1), context.mask.sum(-1))
    assert sorted(np.asarray(mixed.chosen).ravel()) == sorted(np.asarray(context.chosen).ravel())
    assert (np.asarray(mixed.chosen) != np.asarray(context.chosen)).any()


def test_choices_in_the_prompt_change_what_the_base_says(work):
    assert in_context_prompt("q", []) == "q"
    shown = in_context_prompt("q", [("p", "yes", "no")])
    assert shown.index("yes") < shown.index("no") < shown.index("Question: q")
    predictor = in_context_predictor(work, work.data("test"))
    log_p, _, _ = predictor.predict(episodes_of(work, 2), (0, 1))
    np.testing.assert_allclose(log_p[0], np.log(0.5), atol=1e-5)
    assert np.abs(log_p[1] - np.log(0.5)).max() > 1e-4


def test_a_prompt_that_does_not_fit_with_any_choice_is_cut(work):
    predictor = in_context_predictor(work, work.data("test"))
    texts = work.dataset.texts
    before = list(texts)
    episodes = episodes_of(work, 1)
    target = int(episodes.targets.chosen[0, 0])
    try:
        texts[target] = (before[target][0] + " word1" * 200, before[target][1])
        log_p, _, _ = predictor.predict(episodes, (0, 1))
    finally:
        texts[:] = before
    assert np.isfinite(log_p).all()


def test_the_report_is_whole(steered, work):
    report = evaluate_workdir(steered)
    directory = steered / "report"
    assert json.loads((directory / "report.json").read_text())["k"] == [0, 1, 3]
    for name in ("accuracy", "nll", "control", "population", "oracle", "in_context", "by_group", "scrambled"):
        assert report[name], name
    for name in ("norm", "norm_scrambled", "norm_contradicted"):
        assert set(report["latent"][name]) == {"0", "1", "3"}, name
    generation = report["generation"]
    assert set(generation["policy"]) == {"0", "1", "3"}
    assert abs(generation["policy"]["0"]["kl"]) < 0.1  # four steps from the base
    assert len(generation["blend"]["texts"]) == len(generation["blend"]["t"]) == 5
    # From the first person to the second: it starts with what the policy writes for the first.
    written = json.loads((directory / "responses.json").read_text())
    assert generation["blend"]["texts"][0] == written["texts"]["k = 3"][0]
    # Whose wishes nobody knows are judged by the reward model.
    for out in generation["policy"].values():
        assert np.isfinite(out["model_reward"])
        assert 0 <= out["model_win_rate_over_base"] <= 1
        assert 0 <= out["model_win_rate_over_population"] <= 1
    assert "wins over base by it" in (directory / "report.html").read_text()
    for name in ("person_a.jsonl", "person_b.jsonl"):
        assert len(read_choices(str(directory / name))) == 3
    page = (directory / "report.html").read_text()
    assert "Written for people" in page
    assert "From one person to another" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    printed = format_generation(report)
    assert "policy, k = 3" in printed
    assert report["users"]["in_context"] == 2
    assert "choices in the prompt (2 people)" in page
    kl = f"{generation['policy']['3']['kl']:.2f}"
    assert kl in printed
    assert kl in page
    # After twenty steps its encoder still counts choices more than it reads them, and of six people S is mostly noise.
    few = ("S =", "counts choices", "people are scored")
    assert [w for w in report["warnings"] if not any(words in w for words in few)] == []


def test_a_control_that_steers_is_said():
    cell = {"mean": 0.2, "low": 0.1, "high": 0.3}
    report = {"k": [0, 3], "control_steering": {"3": cell}, "scrambled_steering": {"3": cell | {"low": -0.1}}}
    [warning] = steering_warnings(report)
    assert warning.startswith("S = 20.0 at k = 3 with another person's context")


def test_an_encoder_that_counts_choices_is_told_from_those_that_read_them(work):
    """Choices that contradict each other say nothing, however many they are; the published sum over them grows."""
    users = np.arange(len(work.dataset.splits["test"].users))
    found = {}
    for name, encoder in {
        "bayes": {"aggregation": "bayes", "gaussian": False},
        "kinds": {"aggregation": "bayes", "gaussian": False, "support": 64},
        "sum": {"aggregation": "sum", "gaussian": False, "prior_choice": False},
    }.items():
        config = change(copy.deepcopy(work.config), {f"model.encoder.{key}": value for key, value in encoder.items()})
        config.encoder.init_from, config.encoder.frozen = "", False
        model = dataclasses.replace(work, config=config)
        conditioner, _, state = training.make_state(model, "main")
        policy = TrainedPolicy(conditioner, state.variables, 0)
        found[name] = drift(model, model.dataset.splits["test"], policy, users, config.evaluate)
    assert found["bayes"]["counted"] == pytest.approx(0, abs=1e-5)
    norms = found["sum"]["norm_contradicted"]
    assert norms["3"] > 1.5 * norms["1"] > 1.5 * norms["0"]
    [warning] = steering_warnings({"k": [0, 1, 3], "latent": found["sum"]})
    assert "counts choices in place of reading them" in warning
    for counts in ({"counted": 0.2}, {}):  # {}: beside a population model, to be undecided is news
        assert not steering_warnings({"k": [0, 3], "latent": counts})


def test_what_is_written_is_a_table_with_the_columns_that_there_are():
    row = {"movement": 0.5, "reward": 1.234, "well_formed": 1.0, "win_rate_over_base": 0.75, "kl": 0.1}
    base = {"movement": None, "reward": 0.0, "well_formed": 1.0}
    report = {"generation": {"responses": 4, "people": 2, "base": base, "policy": {"3": row}}}
    head, first, second = generation_table(report)
    assert head == ["", "moves by", "true reward", "wins over base", "well-formed", "KL"]
    assert first == ["base", "", "0.00", "", "100.0 %", ""]
    assert second == ["policy, k = 3", "50.0 points", "1.23", "75 %", "100.0 %", "0.10"]


def test_other_people_are_scored_with_texts_of_their_own(steered, tmp_path, caplog):
    """References and tokens of new texts are those that the base gives them; too long ones are left out."""
    work = PolicyWorkdir.open(steered)
    others = [{**row, "user_id": f"other {row['user_id']}"} for row in tiny.rows(users=4, seed=5)]
    others[3]["response_a"] += " word1" * 200
    others += tiny.rows(users=1)  # who was trained on
    path = tiny.write_rows(tmp_path / "others.jsonl", others)
    known, before = len(work.dataset.texts), work
    work, split = work.with_people(str(path))
    assert (len(before.dataset.texts), len(before.reference), len(before.tokens.lengths)) == (known,) * 3
    assert "were trained on and are left out: u0" in caplog.text
    assert "1 choices about texts that are too long are left out" in caplog.text
    assert len(work.dataset.texts) == len(work.reference) == len(work.tokens.lengths) == len(work.dataset.features)
    mine = np.unique(np.asarray(split.table.chosen)[np.asarray(split.table.mask)])
    assert mine.min() >= known
    assert (work.tokens.lengths[mine] > 0).all()
    one = int(mine[0])
    alone = tokenise(work.base, work.config.policy, [work.dataset.texts[one]])
    np.testing.assert_allclose(reference_log_probs(work.base, alone)[0], work.reference[one], atol=1e-4)
    copied = tmp_path / "run"
    shutil.copytree(steered, copied)
    report = evaluate_workdir(copied, str(path), ks=(0, 2))
    assert (copied / "report-others" / "report.html").is_file()
    assert report["data"] == str(path)
    assert report["users"]["scored"] == 4
    assert report["k"] == [0, 2]
    assert not report.get("oracle")
    assert any("only 4 people" in warning for warning in report["warnings"])


def test_the_four_calls(steered, moved, tmp_path):
    steerer = Steerer(PolicyWorkdir.open(steered), moved)
    rows = tiny.rows(users=2)
    choices = [
        as_choices(read_choices(str(tiny.write_rows(tmp_path / f"{u}.jsonl", rows[14 * u : 14 * u + 3]))))
        for u in (0, 1)
    ]
    nobody, one, two = (steerer.infer(c) for c in ([], *choices))
    assert one.mean.shape == (1, 8)
    assert float(jnp.abs(one.mean - nobody.mean).max()) > 1e-3
    assert one.scale.min() > 0
    np.testing.assert_allclose(steerer.infer(choices[0][::-1]).mean, one.mean, atol=1e-5)
    together = steerer.infer_people([[], *choices])
    np.testing.assert_allclose(together.mean, jnp.concatenate([q.mean for q in (nobody, one, two)]), atol=1e-5)
    new = [("question 0", "word1 of a new text", "word2 of another"), ("question 1", "word3 word4", "word2 of another")]
    mixed = [[new[0]], [choices[0][0], *new], [new[1]]]
    for alone, row in zip(mixed, steerer.infer_people(mixed).mean, strict=True):
        np.testing.assert_allclose(steerer.infer(alone).mean[0], row, atol=1e-5)
    assert "a choice in place of a person" in complaint(steerer.infer_people, new)
    long = [choices[0][0]] * (steerer.window + 1)
    assert "choices of person 1, but the policy was made for" in complaint(steerer.infer_people, [[], long])
    assert "no people to infer" in complaint(steerer.infer_people, [])
    responses = [(rows[0]["prompt"], rows[0][n]) for n in ("response_a", "response_b")]
    # Texts that are in the table are scored as the table is.
    scorer = PolicyScorer(
        moved.conditioner, steerer.work.base.decoder, steerer.work.data("test"), steerer.work.config.objective
    )
    ids = np.array([steerer.work.dataset.texts.index(r) for r in responses])
    ratios = scorer.log_ratios(moved.variables, np.asarray(one.mean), np.zeros(2, int), ids)
    expected = steerer.work.config.objective.beta * ratios
    np.testing.assert_allclose(steerer.score(one, responses), expected, atol=1e-4)
    between = blended([one, two], [0.5, 0.5])
    np.testing.assert_allclose(between.mean, (one.mean + two.mean) / 2)
    texts = steerer.generate(steerer.adapt(between), ["question 0", "question 1"], seed=3)
    assert len(texts) == 2
    people = steerer.adapt(
        DiagGaussian(*(jnp.concatenate([getattr(q, n) for q in (one, two)]) for n in ("mean", "scale")))
    )
    assert "adapters of 2 people for 4 prompts" in complaint(steerer.generate, people, ["question 0"] * 4)
    wider = jax.tree.map(lambda x: jnp.concatenate([x, x], -1), people)
    assert "are of another model: 2 layers of 16 → 32, where this one has 2 of 16 → 16" in complaint(
        steerer.generate, wider, ["question 0"] * 2
    )
    assert "10 choices" in complaint(steerer.infer, [("p", "a", "b")] * 10)
    assert steerer.score(one, []).shape == (0,)
    assert "one prompt in place of a list" in complaint(steerer.generate, None, "question 0")
    for wrong in (responses[0], [("question 0",)], [("question 0", None)]):
        assert "response 0: needs two texts, (prompt, response)" in complaint(steerer.score, one, wrong)
    assert "give [(prompt, response)]" in complaint(steerer.score, one, "word1")
    assert "FiLM" in complaint(steerer.save_lora, one, tmp_path / "lora")
    assert "a latent in place of adapters" in complaint(steerer.generate, one, ["question 0"])
    assert steerer.generate(steerer.adapt(one), []) == []
    assert "choice 0 of a person: needs three texts" in complaint(steerer.infer, [("question 0", "word1")])
    assert "choice 1 of a person: the responses are empty or identical" in complaint(
        steerer.infer, [choices[0][0], ("question 0", "word1", "word1")]
    )
    several = DiagGaussian(jnp.concatenate([one.mean, two.mean]), jnp.concatenate([one.scale, two.scale]))
    assert "a latent of 2 people" in complaint(steerer.score, several, responses)
    assert "1 weights for 2 people" in complaint(blended, [one, two], [1.0])
    assert "no people to blend" in complaint(blended, [], [])
    assert "weights [nan, 1.0]" in complaint(blended, [one, two], [float("nan"), 1.0])


@pytest.mark.parametrize("learn_texts", ["no", "yes"])
def test_a_person_is_inferred_from_the_texts_as_they_are_numbered_in_training(steered, learn_texts):
    """With a learnt embedding a text says more than its features: it must be found under its number."""
    work = PolicyWorkdir.open(steered)
    settings = {"model.learn_texts": learn_texts, "encoder.init_from": "", "encoder.frozen": False}
    work = dataclasses.replace(work, config=change(copy.deepcopy(work.config), settings))
    assert bool(work.reward.learnt_texts) == (learn_texts == "yes")
    conditioner, _, state = training.make_state(work, "main")
    keys = iter(jax.random.split(jax.random.key(0), 200))
    variables = jax.tree.map(
        lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape), jax.device_get(state.variables)
    )
    table, texts = work.dataset.splits["test"].table, work.dataset.texts
    chosen, rejected = (jnp.asarray(side[:1, 0, :3]) for side in (table.chosen, table.rejected))
    context = Comparisons(chosen, rejected, jnp.ones((1, 3), bool))
    expected: Any = conditioner.apply(variables, context, jnp.asarray(work.dataset.features), method="infer")
    choices = [(*texts[a], texts[b][1]) for a, b in zip(chosen[0], rejected[0], strict=True)]
    steerer = Steerer(work, TrainedPolicy(conditioner, variables, 0))
    np.testing.assert_allclose(steerer.infer(choices).mean, expected.mean, atol=1e-5)
    assert float(jnp.abs(expected.mean - steerer.infer([]).mean).max()) > 1e-2


def test_a_low_rank_policy_of_a_base_in_bfloat16_writes_and_leaves_as_a_lora(steered, tmp_path):
    work = PolicyWorkdir.open(steered)
    changes = {"adapter.kind": "lora", "adapter.places": ("query", "gate"), "dtype": "bfloat16"}
    config = change(copy.deepcopy(work.config), {f"policy.{key}": value for key, value in changes.items()})
    work = dataclasses.replace(work, config=config, base=load_base(config.policy))
    conditioner, _, state = training.make_state(work, "main", warm=True)
    variables = jax.tree.map(lambda x: x + 0.2, jax.device_get(state.variables))
    steerer = Steerer(work, TrainedPolicy(conditioner, variables, 0))
    latent = steerer.infer([])
    texts = steerer.generate(steerer.adapt(latent), ["question 0"], seed=1)
    assert texts == steerer.generate(steerer.adapt(latent), ["question 0"], seed=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("mine")
    assert "holds other files" in complaint(steerer.save_lora, latent, tmp_path / "mine")
    assert "is a file" in complaint(steerer.save_lora, latent, tmp_path / "mine" / "precious.txt")
    assert (tmp_path / "mine" / "precious.txt").read_text() == "mine"
    for _ in range(2):  # a LoRA of its own may be written anew
        steerer.save_lora(latent, tmp_path / "lora")
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    assert (tmp_path / "lora" / "adapter_model.safetensors").stat().st_size > 1000


def test_choices_are_read_by_the_language_model_itself(finished, tiny_base, tmp_path):
    """No second model: features are the base's own states, of new texts too, and after a move."""
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    config = tiny_policy.config(finished[0] / "rows.jsonl", base, steps=2, population_steps=0, oracle_steps=0)
    config.data.features, config.data.encoder, config.data.encoder_pool = "encoder", str(base), "response"
    config.data.encoder_layer = 1
    training.train(config, tmp_path / "run")
    shutil.move(base, tmp_path / "elsewhere")
    steerer = Steerer.load(tmp_path / "run", str(tmp_path / "elsewhere"))
    known = steerer.work.dataset
    assert known.features.shape[1] == steerer.work.base.decoder.config.width
    np.testing.assert_allclose(known.featuriser.transform(known.texts[:3]), known.features[:3], atol=1e-5)
    choice = ("question 0", "word1 of a new text", "word2 of another")
    assert float(jnp.abs(steerer.infer([choice]).mean - steerer.infer([choice[:1] + choice[:0:-1]]).mean).max()) > 1e-4


def test_a_person_writes_before_and_after_and_two_people_blend(steered, tmp_path):
    rows = tiny.rows(users=2)
    files = [str(tiny.write_rows(tmp_path / f"p{u}.jsonl", rows[14 * u : 14 * u + 3])) for u in (0, 1)]
    [written] = write_for(steered, ["question 0"], choices=files[0])
    assert [w.name for w in written] == ["before any choice", "after 3 choices"]
    [written] = write_for(steered, ["question 0"], people=files, blend=[0, 0.5, 1])
    assert [w.name.split(" · ")[0] for w in written] == ["1", "0.5", "0"]
    assert "two files in --people, got 1" in complaint(
        lambda: write_for(steered, ["q"], people=files[:1], blend=[0, 1])
    )
    for share in (1.5, -0.25, float("nan")):
        said = complaint(lambda share=share: write_for(steered, ["q"], people=files, blend=[0, share]))
        assert said == f"--blend: {share:g} is no share of the second person; give numbers from 0 to 1"
    long = str(tiny.write_rows(tmp_path / "long.jsonl", rows[:10]))
    assert complaint(lambda: write_for(steered, ["q"], choices=long)).startswith(f"{long}: 10 choices of a person")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert str(empty) in complaint(lambda: write_for(steered, ["q"], choices=str(empty)))


def test_the_program_writes_and_names_what_does_not_fit(steered, tmp_path):
    rows = tiny.rows(users=2)
    one, two = (str(tiny.write_rows(tmp_path / f"p{u}.jsonl", rows[14 * u : 14 * u + 3])) for u in (0, 1))
    base = ("steer", f"--workdir={steered}", "--prompt=question 0", "--max_new=4")
    done = run(*base, f"--people={one},{two}", "--blend=0,1", "--json")
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.strip().splitlines()
    said = json.loads(line)["responses"]
    assert [response["share"] for response in said] == [0, 1]
    assert all(response["text"] and response["for"] for response in said)
    assert_one_clear_line(run(*base, f"--people={one},"), "--people: a name is empty")
    assert_one_clear_line(run(*base, f"--people={one}", f"--choices={two}"), "one of --choices and --people, not both")
    assert_one_clear_line(run(*base, f"--choices={one}", "--temperature=nan"), "--temperature: must be a number")
    assert_one_clear_line(run(*base, f"--choices={one}", "--prompt= "), "--prompt: empty")
    assert_one_clear_line(run(*base, f"--choices={one}", "--max_new=300"), "--prompt='question 0': ", "lower --max_new")
    assert_one_clear_line(run(*base, f"--people={one}", "--blend=0,1"), "--blend", "two files in --people, got 1")
    nobody = tmp_path / "nobody.jsonl"
    nobody.write_text("")
    assert_one_clear_line(run(*base, f"--choices={nobody}"), str(nobody), "no usable row")
    assert_one_clear_line(run(*base, f"--people={one},{two}", "--blend=0,half"), "--blend: needs numbers")
    assert_one_clear_line(run(*base, f"--choices={one}", "--trace"), "--trace: means nothing with --prompt")
    ranking = ("steer", f"--workdir={steered}", f"--choices={one}", f"--responses={two}", "--blend=0,1")
    assert_one_clear_line(run(*ranking), "--blend: means nothing with --responses")


def test_a_reward_model_writes_nothing_and_a_policy_is_no_reward_model(finished, steered, tiny_base):
    directory, _ = finished
    assert "ranks responses but writes none" in complaint(Steerer.load, directory / "run")
    assert "no config.json" in complaint(Steerer.load, directory / "absent")
    assert "a language model; give the workdir of a policy" in complaint(Steerer.load, tiny_base)


def test_a_policy_that_is_not_trained_to_its_end_says_so(steered, tmp_path, caplog):
    shutil.copytree(steered, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["train"]["steps"] = 600
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    with caplog.at_level("WARNING", "fssa_jax"):
        Steerer.load(tmp_path / "run")
    assert "600" in caplog.text


def test_the_example_of_the_four_calls(steered, tmp_path, monkeypatch):
    shutil.copytree(steered, tmp_path / "runs" / "policy")
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        names: dict = {}
        tests = doctest.DocTestFinder(exclude_empty=True).find(Steerer, name="Steerer", module=steer)
        named = [t.name.partition(".")[2] for t in tests if t.examples]
        assert named == ["", "adapt", "generate", "infer", "infer_people", "score"]
        for test in tests:  # that of the class first: it loads the policy, and the calls go on with it
            test.globs = names
            assert doctest.DocTestRunner().run(test, clear_globs=False).failed == 0, test.name
        [test] = doctest.DocTestFinder().find(blended, name="blended", module=steer, globs={})
        assert doctest.DocTestRunner().run(test).failed == 0


def test_the_best_that_can_be_written_follows_from_what_is_known():
    """Nothing is gained from the prior's mean alone; the whole reward of a likely style at a low temperature."""
    weights, _ = styles.people()
    known = np.eye(len(weights))
    most = styles.SCALE * np.abs(weights).sum(1) / 2
    np.testing.assert_allclose(best_reward(known, weights, 0.05), most, atol=1e-4)
    flat = np.broadcast_to(np.full(len(weights), 1 / len(weights)), known.shape)
    np.testing.assert_allclose(best_reward(flat, weights, 0.5), 0, atol=1e-4)
    # One attribute: weight 1, both styles: tanh of half the logit times half the scale.
    one = np.flatnonzero(np.abs(weights).sum(1) == 1)[:1]
    expected = styles.SCALE / 2 * np.tanh(styles.SCALE / 2 / 0.5)
    np.testing.assert_allclose(best_reward(known[one], weights[one], 0.5), expected, rtol=1e-5)
