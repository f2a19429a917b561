"""docs/config.md is what the dataclasses of settings say."""

import dataclasses

import pytest

from fssa_jax.config import PolicyEvaluation, UltraFeedback
from fssa_jax.config.experiment import KINDS
from fssa_jax.config.fields import all_kinds
from fssa_jax.config.reference import markdown, meanings
from tests.programs import ROOT


def test_the_document_is_fresh():
    written = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert written == markdown(), "run: python -m fssa_jax.config.reference > docs/config.md"


@pytest.mark.parametrize("kind", all_kinds(*KINDS))
def test_every_kind_and_every_field_says_what_it_is(kind):
    assert (kind.__doc__ or "").strip()
    assert not (kind.__doc__ or "").startswith(f"{kind.__name__}("), "the signature that a dataclass writes itself"
    said = meanings(kind)
    assert [field.name for field in dataclasses.fields(kind) if not said.get(field.name, "").strip()] == []


@pytest.mark.parametrize("kind", all_kinds(*KINDS))
def test_every_kind_has_its_section_and_every_key_its_row(kind):
    [section] = [part for part in markdown().split("\n## ")[1:] if part.splitlines()[0] == kind.__name__]
    rows = [line for line in section.splitlines() if line.startswith("`")]
    assert [row.split(" | ")[0].strip("`") for row in rows] == [field.name for field in dataclasses.fields(kind)]
    assert all(len(row.replace("\\|", "").split(" | ")) == 4 for row in rows)


def test_meanings_are_of_the_class_itself_or_of_what_it_inherits_from():
    assert meanings(UltraFeedback)["path"] == "File, directory or hub name."
    assert meanings(PolicyEvaluation)["samples"] == "Policies are scored at the mean of z."
    assert meanings(PolicyEvaluation)["draws"] == "Random contexts per person."


def test_defaults_ranges_and_words_are_shown():
    text = markdown()
    for row in (
        "`steps` | `3000` | int > 0 | Number of training steps.",
        "`seed` | `0` | int ≥ 0 and < 4294967296 | Seed of parameters and batches.",
        "`learning_rate` | `0.001` | float > 0 | Peak learning rate.",
        "`gaussian` | `false` | `true`, `false` | z is integrated out, over the posterior; otherwise it is the mean.",
        '`places` | `("residual",)` | some of `query`, `key`, `value`, `out`, `gate`, `up`, `down`, `residual` | Proj',
        "`k` | `(0, 1, 3, 5, 10)` | several int | Context sizes to score",
        "`encoder` | [SetEncoder](#setencoder) | [SetEncoder](#setencoder), [BayesEncoder](#bayesencoder) | The",
        "`path` | empty | text | File, directory or hub name.",
        "`pool` | `mean` | `mean`, `response`, `last` | Mean over all tokens",
    ):
        assert row in text, row
