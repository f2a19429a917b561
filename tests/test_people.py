"""benchmarks.people: its references, its made-up people and its program."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import factor_models, people_data, people_scores
from fssa_jax.data.dataset import make_table
from fssa_jax.evaluate.episodes import evaluation_episodes
from tests.mistakes import complaint
from tests.programs import assert_one_clear_line, run

TEXTS, USERS, ROWS = 40, 120, 12


def low_rank(width: int = 2, seed: int = 0):
    """s (texts,), f (texts, 3), and a table of people who have a strong taste of rank 3."""
    rng = np.random.default_rng(seed)
    s, f = 0.3 * rng.normal(size=TEXTS), 1.5 * rng.normal(size=(TEXTS, 3))
    choices = []
    for _ in range(USERS):
        reward = s + f @ rng.normal(size=3)
        pools = []
        for half in np.split(rng.permutation(TEXTS), 2):
            offers = np.array([rng.choice(half, width, replace=False) for _ in range(ROWS)])
            noisy = reward[offers] + rng.gumbel(size=offers.shape)
            pools.append(np.take_along_axis(offers, np.argsort(-noisy, axis=1), axis=1))
        choices.append(pools)
    return s.astype(np.float32), f.astype(np.float32), make_table(choices, [0] * USERS)


def split(table):
    """The first 100 people for training, and episodes of the others."""
    first = jax.tree.map(lambda x: x[:100], table)
    episode = evaluation_episodes(0, 0, jax.tree.map(jnp.asarray, table), jnp.arange(100, USERS), max_context=10)
    return first, episode


def accuracy(log_p) -> float:
    log_p = np.asarray(log_p)
    return float((log_p[..., 0] >= log_p.max(-1)).mean())


@pytest.mark.parametrize("width", [2, 4])
def test_a_context_helps_the_factor_model(width):
    s, f, table = low_rank(width)
    first, episode = split(table)
    found = factor_models.tuned_factor_model(0, first, s, {"texts": None, "features": f}, episode, (0, 10))
    assert set(found.settings) == {"basis", "precision", "width", "steps", "validation_nll"}
    without, after = (accuracy(factor_models.map_log_p(found.rewards, found.factors, episode, k)) for k in (0, 10))
    assert after > without + 0.1
    s, v = next(factor_models.factorisations(0, first, s))
    assert accuracy(factor_models.map_log_p(s, v, episode, 10)) > without + 0.05


def test_the_mode_is_where_the_gradient_is_zero():
    s, f, table = low_rank(3)
    _, episode = split(table)
    context, target = (jax.tree.map(lambda x: x[:1], part) for part in (episode.context, episode.targets))
    one = dataclasses.replace(episode, context=context, targets=target)
    ids, listed = factor_models.offered_texts(context)

    def log_posterior(z):
        log_p = factor_models.log_choice(s[ids] + jnp.einsum("unrm,m->unr", f[ids], z), listed)[..., 0]
        return jnp.where(context.mask, log_p, 0.0).sum() - 0.5 * (z**2).sum()

    z = jax.lax.fori_loop(0, 2000, lambda _, z: z + 0.02 * jax.grad(log_posterior)(z), jnp.zeros(3))
    ids, listed = factor_models.offered_texts(target)
    wanted = factor_models.log_choice(s[ids] + jnp.einsum("utrm,m->utr", f[ids], z), listed)
    np.testing.assert_allclose(factor_models.map_log_p(s, f, one, 10), wanted, atol=2e-4)


def listed_pairs(episode):
    """The same choices as lists of four, of which two places are empty."""

    def wider(choices):
        shape = (*choices.mask.shape, 2)
        return dataclasses.replace(choices, others=jnp.zeros(shape, jnp.int32), listed=jnp.zeros(shape, bool))

    return dataclasses.replace(episode, context=wider(episode.context), targets=wider(episode.targets))


def test_a_list_of_two_is_a_pair():
    s, f, table = low_rank()
    first, episode = split(table)
    listed, points = listed_pairs(episode), jnp.asarray(people_data.normal_points(64, 3))
    lists = dataclasses.replace(first, others=np.full((*first.chosen.shape, 2), -1, np.int32))
    pair_s, pair_f = next(factor_models.factorisations(0, first, s, width=4, every=20))
    list_s, list_f = next(factor_models.factorisations(0, lists, s, width=4, every=20))
    np.testing.assert_allclose(pair_s, list_s, atol=1e-4)
    np.testing.assert_allclose(pair_f, list_f, atol=1e-4)
    for predict in (
        lambda e: factor_models.map_log_p(s, f, e, 10)[..., :2],
        lambda e: factor_models.point_log_p(jnp.asarray(s), jnp.asarray(f), points, e, (0, 10))[..., :2],
    ):
        np.testing.assert_allclose(predict(episode), predict(listed), atol=1e-5)
    mask = np.asarray(episode.targets.mask)
    one, other = (
        people_scores.scored([people_scores.predictions(factor_models.map_log_p(s, f, e, 10)[None], e)], mask)
        for e in (episode, listed)
    )
    np.testing.assert_allclose(one["accuracy"], other["accuracy"], atol=1e-5)
    np.testing.assert_allclose(one["nll"], other["nll"], atol=1e-5)


@pytest.mark.parametrize("width", [2, 4])
def test_a_context_helps_the_mixed_logit(width):
    pytest.importorskip("xlogit")
    s, f, table = low_rank(width)
    if width == 4:  # lists of three and of four
        table.others[::2, :, :, -1] = -1
    first, episode = split(table)
    model = factor_models.fit_mixed_logit(0, first, s, f, most_draws=100)
    assert model.facts["population_reward"]
    np.testing.assert_allclose(model.deviation, 1, atol=0.35)
    np.testing.assert_allclose(model.mean, 0, atol=0.35)
    assert model.scale == pytest.approx(1, abs=0.4)
    log_p = model.log_p(s, f, episode, (0, 3, 10))
    without, few, many = map(accuracy, log_p)
    assert many > few > without
    limit = factor_models.point_log_p(
        jnp.asarray(s), jnp.asarray(f), jnp.asarray(people_data.normal_points(2048, 3)), episode, (0, 10)
    )
    assert abs(many - accuracy(limit[1])) < 0.03
    few_rows = factor_models.fit_mixed_logit(0, first, s, f, most_rows=400, most_draws=20).facts
    assert few_rows["rows"] <= 400
    assert (few_rows["people"], few_rows["of_people"]) == (400 // (2 * ROWS), 100)


def test_the_mixed_logit_asks_for_its_library(monkeypatch):
    monkeypatch.setattr(factor_models, "xlogit", None)
    s, f, table = low_rank()
    message = complaint(factor_models.fit_mixed_logit, 0, table, s, f)
    assert message.startswith("--mixed_logit: needs xlogit; pip install")


def test_columns_are_the_features_or_their_principal_components():
    rng = np.random.default_rng(0)
    features, seen = rng.normal(size=(50, 3)), np.arange(50) < 30
    few = factor_models.principal_columns(features, seen)
    np.testing.assert_allclose(few[seen].std(0), 1, atol=1e-5)
    np.testing.assert_allclose(np.abs(np.corrcoef(few.T, features.T)[:3, 3:].diagonal()), 1, atol=1e-5)
    many = factor_models.principal_columns(features @ rng.normal(size=(3, 20)), seen)
    assert many.shape == (50, 3)  # the rank
    np.testing.assert_allclose(np.corrcoef(many[seen].T), np.eye(3), atol=1e-3)


def test_made_up_people_and_their_limit():
    for name, make in (("raters", people_data.raters), ("tastes", people_data.tastes)):
        made = make(people=3, choices=4)
        assert len(made.rows) == 12, name
        assert {row["response_a"] for row in made.rows} <= set(made.truth)
    assert not people_data.noise(3).of_texts([("", row["response_a"]) for row in people_data.noise(3).rows])[1].any()
    made = people_data.kinds(people=30, choices=20, prompts=20)
    number = {text: i for i, text in enumerate(made.truth)}
    choices = []
    for person in range(30):
        mine = [row for row in made.rows if row["user_id"] == f"u{person}"]
        ids = np.array(
            [[number[row["response_a"]], number[row["response_b"]]][:: -1 if row["choice"] else 1] for row in mine]
        )
        choices.append([ids[:10], ids[10:]])
    table = jax.tree.map(jnp.asarray, make_table(choices, [0] * 30))
    episode = evaluation_episodes(0, 0, table, jnp.arange(30), max_context=10)
    s, f = map(jnp.asarray, made.of_texts([("", text) for text in made.truth]))
    log_p = factor_models.point_log_p(s, f, jnp.asarray(made.points), episode, (0, 3, 10), made.lapse)
    none, few, many = map(accuracy, log_p)
    assert none < few < many
    np.testing.assert_allclose(np.exp(log_p).sum(-1), 1, atol=1e-5)


def test_rows_become_lists_and_situations(tmp_path):
    pair = {"user_id": "anna", "prompt": "?"}
    rows = [
        pair | {"response_a": "a", "response_b": "b", "choice": 0},
        pair | {"response_a": "c", "response_b": "a", "choice": 1},
        pair | {"response_a": "a", "response_b": "b", "choice": 1},
        pair | {"response_a": "b", "response_b": "c", "choice": 0},
    ]
    lists = people_data.as_lists(rows)
    assert [row["responses"][row["choice"]] for row in lists] == ["a", "b"]
    assert [sorted(row["responses"]) for row in lists] == [["a", "b", "c"]] * 2
    assert [row["situation"] for row in lists] == ["s0", "s1"]
    assert complaint(people_data.as_lists, rows[:3]).startswith("--lists: ")
    assert complaint(people_data.rows_file, "nobody", tmp_path).startswith("--data: nobody is neither a file nor ")


def test_attributes_are_read_from_the_texts():
    offer = "Time-of-day rates: 11 cents a kWh by day. A contract of 5 years. From a well-known company, not local."
    assert people_data.attributes("electricity", [("", offer)]).tolist() == [[0, 1, 0, 5, 0, 1]]
    journey = "A ticket for 24.50 guilders, 150 minutes, 1 change, comfort class B."
    assert people_data.attributes("trainchoice", [("", journey)]).tolist() == [[24.5, 150, 1, 1]]
    assert people_data.attributes("kinds", [("", journey)]) is None


def test_people_of_several_seeds_are_pooled():
    def result(names, own, other):
        cell = {"nll": [[0.5] * len(names)], "ece": [0.01], "ece_by_chance": [0.008]}
        series = {"np_btl": cell | {"accuracy": [own]}, "population": cell | {"accuracy": [other]}}
        facts = {"left_out": 0, "targets": 4, "train_people": 2, "chosen": None, "calibration": {"helps": True}}
        series["map"] = series["population"]
        return {"k": [0], "people": names, "series": series, "map": {}, "seconds": {}, **facts}

    found = people_scores.summary(
        [result(["a", "b"], [1.0, 0.5], [0.5, 0.5]), result(["b", "c"], [0.75, 0.5], [0.5, 0.5])]
    )
    differences = found["np_btl_minus_population"]["accuracy"]["0"]  # a 50, b (0 + 25) / 2, c 0
    assert differences == {"mean": 20.83, "se": round(np.std([50, 12.5, 0], ddof=1) / 3**0.5, 2)}
    assert found["np_btl"]["accuracy"]["0"] == 68.75
    assert found["goals"]["accuracy_at_least_map"] == {"0": True}
    assert "accuracy_at_least_mixed_logit_less_0.3" not in found["goals"]
    assert "| 0 | 50.0 / 0.500 / 0.010 / 50.0 |" in people_scores.markdown("name", found)
    assert people_scores.worst_decile(np.array([0.0, 0.5] + [1.0] * 13)) == pytest.approx(0.25 / 1.5)


@pytest.mark.benchmarks
def test_a_small_data_set_is_measured_and_its_results_are_reused(monkeypatch, tmp_path):
    mixed = factor_models.xlogit is not None
    usual = people_scores.configuration

    def short(*arguments):
        config = usual(*arguments)
        train = config.train
        train.steps = train.population_steps = train.steps_per_call = train.validate_every = train.checkpoint_every = 2
        train.users, config.auto = 8, "no"
        return config

    monkeypatch.setattr(people_scores, "configuration", short)
    monkeypatch.setitem(people_data.MADE_UP, "kinds40", lambda: people_data.kinds(20, 10, 20))
    settings = people_scores.Settings(tmp_path, draws=2, mixed_logit=mixed)
    result = people_scores.stored("kinds40", 0, settings)
    monkeypatch.setattr(people_scores, "measure", None)
    assert people_scores.stored("kinds40", 0, settings) == result
    found = json.loads(json.dumps(people_scores.summary([result])))
    assert found["k"][:3] == [0, 1, 3]
    rivals = ("population", "map", *(["mixed_logit"] if mixed else []))
    for name in (*rivals, "np_btl", "limit"):
        for what in ("accuracy", "nll", "ece", "ece_by_chance", "worst_decile"):
            assert set(found[name][what]) == {str(k) for k in found["k"]}, name
    for name in rivals:
        means = [found[one]["accuracy"]["3"] for one in ("np_btl", name)]
        difference = found[f"np_btl_minus_{name}"]["accuracy"]["3"]["mean"]
        assert difference == pytest.approx(means[0] - means[1], abs=0.02)
    assert found["np_btl_minus_population"]["nll"]["0"]["mean"] == pytest.approx(0, abs=0.2)
    assert set(found["goals"]) >= {"accuracy_at_least_map", "nll_at_most_both", "ece_at_most_0.02"}
    assert len(found["seconds"]) == len(found["guard_open"]) == 1


def test_flags_are_asked_for(tmp_path):
    for arguments, words in (
        ([], ("--data: name files of rows or made-up people: raters, ",)),
        (["--data=kinds"], ("--room: ",)),
        (["--data=kinds,elsewhere/kinds.jsonl", f"--room={tmp_path}"], ("--data: two data sets have the same name",)),
    ):
        assert_one_clear_line(run("people", *arguments, package="benchmarks"), *words)
