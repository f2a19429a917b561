"""The verdict says what the figures say, no more."""

import pytest

from fssa_jax.evaluate.verdict import verdict
from fssa_jax.evaluate.warnings import report_warnings


def cell(mean, half=0.01):
    return {"mean": mean, "low": mean - half, "high": mean + half}


def report(**changes):
    series = {
        "k": [0, 3],
        "users": {"scored": 30},
        "gain": {"0": cell(0.0), "3": cell(0.05)},
        "control_gain": {"0": cell(0.0), "3": cell(-0.02)},
        "worst_decile": {"0": cell(0.4), "3": cell(0.45)},
        "population_worst_decile": {"0": cell(0.4), "3": cell(0.4)},
        "nll": {"0": cell(0.6), "3": cell(0.55)},
        "ece": {"0": cell(0.01), "3": cell(0.015)},
        "ece_by_chance": {"0": {"mean": 0.01, "high": 0.02}, "3": {"mean": 0.012, "high": 0.02}},
        "nll_rise": {"from": 0, "to": 3, **cell(-0.05)},
        "training": {"best": 50, "last": 200, "decayed": False},
    }
    return verdict(series | changes)


def test_a_good_report():
    found = report()
    assert found["helps"] == "yes"
    assert found["lines"] == [
        "3 choices of a person help: 5.0 points over the population model (95 % interval 4.0 to 6.0; 30 people)",
        "with another person's choices: -2.0 points over the population model (-3.0 to -1.0), so it matters whose "
        "choices they are",
        "the worst decile of people, at k = 0 where it gains least: 40.0 % of their choices are predicted, 40.0 % by "
        "the population model",
        "probabilities can be trusted: ECE at k = 3 is 0.015, by chance it would be 0.012",
        "training was long enough: the best of 200 steps is 50",
    ]


def test_what_people_share_is_no_merit_of_the_choices():
    """A model that is better than the population's for everybody gains as much without choices."""
    everybody = {"gain": {"0": cell(0.04), "3": cell(0.045)}, "choices_gain": {"0": cell(0, 0), "3": cell(0.005)}}
    found = report(**everybody)
    assert found["helps"] == "not shown"
    assert found["lines"][:2] == [
        "3 choices of a person are not shown to help: 4.5 points over the population model (95 % interval 3.5 to 5.5; "
        "30 people)",
        "of these, 4.0 points are there without any choice, and 0.5 points (-0.5 to 1.5) come from the choices",
    ]
    # Another person's choices keep what is shared: they do not help.
    controls = {"control_gain": {"3": cell(0.03)}, "control_choices_gain": {"3": cell(-0.01)}}
    choices = {"choices_gain": {"0": cell(0, 0), "3": cell(0.05)}, "gain": {"0": cell(0.04), "3": cell(0.09)}}
    found = report(**choices, **controls)
    assert found["helps"] == "yes"
    assert found["lines"][2].endswith("so it matters whose choices they are")


def test_the_guard_is_said_and_its_still_latent_is_no_collapse():
    training = {"best": 50, "last": 200, "decayed": False, "calibration": {"helps": False, "people": 12}}
    found = report(gain={"0": cell(0.0), "3": cell(0.0)}, training=training)
    assert "everybody gets the population model" in found["lines"][1]
    assert not any("another person's" in line for line in found["lines"])
    still = {"units": 4, "active_units": 0, "context_effect": 0.0}
    series = {"k": [0, 3], "users": {"scored": 30}, "targets": {"unseen": 0, "rows": 9}, "latent": still}
    assert report_warnings(series | {"training": training}, False) == []
    assert len(report_warnings(series, False)) == 2


@pytest.mark.parametrize(
    ("changes", "helps", "said"),
    [
        ({"gain": {"0": cell(0.0), "3": cell(0.005)}}, "not shown", "are not shown to help: 0.5 points"),
        ({"gain": {"0": cell(0.0), "3": cell(-0.05)}}, "no", "do harm: -5.0 points"),
        ({"users": {"scored": 9}}, "not shown", "9 people are too few to tell: launch.evaluate --folds=5"),
        ({"users": {"scored": 10}}, "yes", "3 choices of a person help"),
        (
            {"last_gain": cell(0.02)},
            "yes",
            "from 0 to 3 choices it gains 2.0 points (1.0 to 3.0): more choices would help",
        ),
        ({"last_gain": cell(0.005)}, "yes", "(-0.5 to 1.5): more would add little"),
        (
            {"training": {"best": 100, "last": 100, "decayed": False, "decided": True, "limited": True}},
            "yes",
            "training may be too short: 100 steps, the most that were allowed",
        ),
        (
            {"learning_curve": {"people": [10, 20, 40], "last": cell(0.03)}},
            "yes",
            "trained on 40 people instead of 20 it gains 3.0 points (2.0 to 4.0): more people would help",
        ),
        (
            {"learning_curve": {"people": [10, 20, 40], "last": cell(0.0)}},
            "yes",
            "(-1.0 to 1.0): more are not shown to help",
        ),
        ({"control_gain": {"3": cell(0.04)}}, "yes", "help as well, 4.0 points over the population model (3.0 to 5.0)"),
        ({"control_gain": {"3": cell(0.05, 0.06)}}, "yes", "not clearly different from the person's own"),
        (
            {"worst_decile": {"0": cell(0.4), "3": cell(0.3)}},
            "yes",
            "it fails the worst decile of people at k = 3: 30.0 %",
        ),
        (
            {"nll_rise": {"from": 1, "to": 3, **cell(0.05)}},
            "yes",
            "NLL grows by 0.050 from 1 to 3 choices (0.040 to 0.060): it is over-confident",
        ),
        ({"nll_rise": {"from": 1, "to": 3, **cell(0.005)}}, "yes", "probabilities can be trusted"),
        ({"ece": {"0": cell(0.01), "3": cell(0.08)}}, "yes", "off by 6.8 points on average: ECE at k = 3 is 0.080"),
        (
            {
                "ece": {"0": cell(0.01), "3": cell(0.08)},
                "ece_by_chance": {k: {"mean": 0.07, "high": 0.1} for k in "03"},
            },
            "yes",
            "probabilities can be trusted: ECE at k = 3 is 0.080, by chance it would be 0.070",
        ),
        ({"training": {"best": 200, "last": 200, "decayed": False}}, "yes", "training was too short"),
        ({"training": {"best": 200, "last": 200, "decayed": True}}, "yes", "training was long enough"),
    ],
)
def test_what_is_wrong_is_said(changes, helps, said):
    found = report(**changes)
    assert found["helps"] == helps
    assert any(said in line for line in found["lines"])


def test_more_choices_are_not_spoken_of_where_choices_do_not_help():
    lines = report(gain={"0": cell(0.0), "3": cell(0.005)}, last_gain=cell(0.02))["lines"]
    assert not any("more choices" in line for line in lines)
