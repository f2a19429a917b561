"""Files of every schema go from the file to a report, as reward models and, for lists, as a policy."""

import json

import numpy as np
import pytest

import fssa_jax
from fssa_jax.data.reading import read_rows
from fssa_jax.experiment.evaluate import evaluate_workdir
from fssa_jax.experiment.train import train
from tests import tiny, tiny_policy

pytestmark = pytest.mark.experiments


def as_trl(row):
    sides = (row["response_a"], row["response_b"])[:: 1 - 2 * row["choice"]]
    prompt = [{"role": "system", "content": "be brief"}, {"role": "user", "content": row["prompt"]}]
    chosen, rejected = ([*prompt, {"role": "assistant", "content": side}] for side in sides)
    return {"user_id": row["user_id"], "chosen": chosen, "rejected": rejected}


def as_texts(row):
    chosen, rejected = (row["response_a"], row["response_b"])[:: 1 - 2 * row["choice"]]
    return {"user_id": row["user_id"], "prompt": row["prompt"], "chosen": chosen, "rejected": rejected}


def lists(kind):
    """Four answers to a question; some people like long ones."""
    rng = np.random.default_rng(0)
    for u in range(24):
        for i in range(12):
            answers = [" ".join(rng.choice([f"word{n}" for n in range(30)], length)) for length in (3, 5, 7, 9)]
            order = rng.permutation(4)
            best = 3 if u % 2 == 0 else 0
            row = {"user_id": f"u{u}", "prompt": f"question {i}"}
            if kind == "one of n":
                yield row | {"responses": [answers[j] for j in order], "choice": int(np.argmax(order == best))}
            elif kind == "rankings":
                yield row | {"ranking": answers[::-1] if u % 2 == 0 else answers}
            else:
                for j, answer in enumerate(answers):
                    yield row | {"response": answer, "rating": j / 2 if u % 2 == 0 else 5 - j / 2}


SCHEMAS = {
    "trl, messages": lambda: map(as_trl, tiny.rows()),
    "trl, texts": lambda: map(as_texts, tiny.rows()),
    "one of n": lambda: lists("one of n"),
    "rankings": lambda: lists("rankings"),
    "ratings": lambda: lists("ratings"),
}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_from_the_file_to_a_report(tmp_path, schema):
    config = tiny.config(tiny.write_rows(tmp_path / "rows.jsonl", list(SCHEMAS[schema]())), specialist_steps=0)
    config.train.steps = config.train.validate_every = config.train.checkpoint_every = 150
    config.evaluate.k = (0, 3)
    train(config, tmp_path / "run")
    report = evaluate_workdir(tmp_path / "run")
    accuracy = {k: cell["mean"] for k, cell in report["accuracy"].items()}
    several = schema in ("one of n", "rankings")
    assert (report["steering"] is None) or not several
    assert accuracy["3"] > accuracy["0"] + 0.1
    assert accuracy["3"] > (0.5 if several else 0.75)
    assert report["nll"]["0"]["mean"] < (1.5 if several else 0.8)
    person = fssa_jax.load(tmp_path / "run")
    file = tmp_path / "run" / "report" / "example_choices.jsonl"
    if file.exists():
        rows, _ = read_rows(str(file))
        assert np.isfinite(person.infer(rows).mean).all()
    page = (tmp_path / "run" / "report" / "report.html").read_text()
    assert "accuracy" in page


def test_a_policy_learns_from_choices_among_several(tmp_path, tiny_base):
    rows = tiny.write_rows(tmp_path / "rows.jsonl", list(lists("one of n")))
    train(tiny.config(rows, specialist_steps=0), tmp_path / "run")
    config = tiny_policy.config(rows, tiny_base, tmp_path / "run", steps=10)
    train(config, tmp_path / "policy")
    report = evaluate_workdir(tmp_path / "policy")
    assert report["steering"] is None
    assert 0 <= report["accuracy"]["0"]["mean"] <= 1
    assert np.isfinite(report["nll"]["0"]["mean"])
    lines = [json.loads(line) for line in (tmp_path / "policy" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss/preference"] for line in lines if "loss/preference" in line]
    assert losses[0] == pytest.approx(np.log(4), rel=0.1)  # of four, by a policy that equals its base
