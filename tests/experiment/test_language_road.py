"""The paper's data from its own schema to a report, with an encoder and a tokenizer; and what goes wrong on the way."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from fssa_jax.data import dataset as datasets
from fssa_jax.data.quantities import QuantityFeaturiser
from tests import small_lm, tiny
from tests.data.test_schemas import records
from tests.programs import ROOT, assert_one_clear_line, run

SMALL = [
    "--config.train.steps=10",
    "--config.train.steps_per_call=5",
    "--config.train.validate_every=5",
    "--config.train.checkpoint_every=5",
    "--config.train.users=8",
    "--config.train.population_steps=5",
    "--config.train.specialist_steps=5",
    "--config.evaluate.bootstrap=20",
    "--config.evaluate.draws=1",
    "--config.evaluate.shuffles=1",
    "--config.model.width=16",
    "--config.model.encoder.width=16",
    "--config.model.encoder.latent_dim=16",
]


@pytest.fixture(scope="module")
def prepared(once):
    def make(directory):
        small_lm.save_bert(directory / "bert")
        small_lm.save_decoder(directory / "decoder")
        (directory / "uf.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records(300)))
        done = run(
            "prepare_data",
            f"--source={directory / 'uf.jsonl'}",
            f"--out={directory / 'hh'}",
            f"--encoder={directory / 'bert'}",
            f"--tokenizer={directory / 'decoder'}",
            "--max_length=100",
        )
        assert done.returncode == 0, done.stderr

    return once("uf", make)


def test_ratings_become_embedded_and_tokenised_tables(prepared):
    data = datasets.load(prepared / "hh")
    assert data.groups == ["helpfulness", "honesty"]
    assert data.report["schema"] == "ultrafeedback"
    assert isinstance(data.featuriser, QuantityFeaturiser)  # the texts are of numbered words
    assert data.features.shape == (len(data.texts), 16 + len(data.featuriser.columns))
    assert not (prepared / "hh.embedding").exists()
    with np.load(prepared / "hh" / "tokens.npz") as tokens:
        kept = tokens["lengths"] > 0
        assert tokens["tokens"].shape[0] == len(data.texts)
        assert (tokens["starts"][kept] < tokens["ends"][kept]).all()
        assert sorted(np.flatnonzero(~kept)) == data.report["too_long_texts"]
    prompts = {name: set() for name in data.splits}
    for name, split in data.splits.items():
        ids = np.asarray(split.table.chosen)[
            np.arange(split.table.chosen.shape[2]) < np.asarray(split.table.count)[..., None]
        ]
        prompts[name] = {data.texts[i][0] for i in ids}
    assert not prompts["train"] & (prompts["val"] | prompts["test"])


@pytest.mark.experiments
def test_the_papers_configuration_runs_to_its_report(prepared, tmp_path):
    workdir = tmp_path / "run"
    config = "--config=configs/ultrafeedback_reward.py:hh,np_btl"
    done = run("train", config, f"--config.data.path={prepared / 'hh'}", f"--workdir={workdir}", *SMALL)
    assert done.returncode == 0, done.stderr
    done = run("evaluate", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    report = json.loads((workdir / "report" / "report.json").read_text())
    assert 0 <= report["accuracy"]["10"]["mean"] <= 1
    assert report["steering"] is not None
    other = run(
        "train",
        "--config=configs/ultrafeedback_reward.py:hht,np_btl",
        f"--config.data.path={prepared / 'hh'}",
        f"--workdir={tmp_path / 'other'}",
        *SMALL,
    )
    assert_one_clear_line(other, "prepared with config.data.labels")


MISTAKES = {
    "no config": (lambda d: (d / "empty").mkdir(exist_ok=True) or "--encoder={d}/empty", "no config.json"),
    "no such directory": (lambda d: "--encoder={d}/absent", "no such directory"),
    "truncated": (lambda d: cut(d) or "--encoder={d}/cut", "truncated or damaged"),
    "tokenizer": (lambda d: (d / "empty").mkdir(exist_ok=True) or "--tokenizer={d}/empty", "no tokenizer"),
    "labels": (lambda d: "--config.data.labels=('kindness',)", "config.data.labels"),
}


def cut(directory):
    small_lm.save_bert(directory / "cut")
    file = directory / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    (directory / "cut" / "digests.json").unlink()


@pytest.mark.parametrize(("make", "words"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_with_models_are_one_line(prepared, tmp_path, make, words):
    flag = make(tmp_path).format(d=tmp_path)
    more = [] if "encoder" in flag else ["--config.data.features=tfidf"]
    done = run("prepare_data", f"--source={prepared / 'uf.jsonl'}", f"--out={tmp_path / 'out'}", flag, *more)
    assert_one_clear_line(done, words)
    assert not (tmp_path / "out").exists()


@pytest.mark.devices
def test_two_processes_share_the_embedding(tmp_path):
    """More than one shard of texts: each process writes its own, the first one the prepared directory."""
    config = small_lm.save_bert(tmp_path / "bert")
    rows = tiny.write_rows(tmp_path / "rows.jsonl", tiny.rows(users=50))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "launch.prepare_data",
        f"--source={rows}",
        f"--out={tmp_path / 'out'}",
        f"--encoder={tmp_path / 'bert'}",
        f"--coordinator=localhost:{port}",
        "--processes=2",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    running = [
        subprocess.Popen([*command, f"--process={i}"], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    for process in running:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    prepared = datasets.load(tmp_path / "out")
    assert prepared.features.shape == (len(prepared.texts), config.width)
    assert len(prepared.texts) > 1024
    own = np.asarray(prepared.featuriser.transform(prepared.texts[-3:]))
    np.testing.assert_allclose(np.asarray(prepared.features[-3:]), own, atol=1e-5)
    assert_one_clear_line(run("prepare_data", *command[3:6], "--coordinator=nowhere"), "--processes=N")


@pytest.mark.experiments
def test_the_papers_policy_runs_to_its_report(prepared, tmp_path):
    workdir = tmp_path / "policy"
    done = run(
        "train",
        "--config=configs/ultrafeedback_policy.py:hh,np_dpo",
        f"--config.data.path={prepared / 'hh'}",
        f"--config.policy.base={prepared / 'decoder'}",
        f"--workdir={workdir}",
        "--config.policy.max_length=120",
        "--config.policy.adapter.shared.rank=2",
        "--config.encoder.model.width=16",
        "--config.encoder.model.encoder.width=16",
        "--config.encoder.model.encoder.latent_dim=16",
        "--config.train.steps=4",
        "--config.train.steps_per_call=2",
        "--config.train.validate_every=4",
        "--config.train.checkpoint_every=4",
        "--config.train.population_steps=0",
        "--config.train.targets=3",
        "--config.train.specialist_steps=0",
        "--config.evaluate.users=4",
        "--config.evaluate.targets=3",
        "--config.evaluate.k=(0,1)",
        "--config.evaluate.bootstrap=20",
        "--config.evaluate.shuffles=1",
        "--config.evaluate.in_context_users=0",
        "--config.evaluate.generate.people=0",
    )
    assert done.returncode == 0, done.stderr
    done = run("evaluate", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    report = json.loads((workdir / "report" / "report.json").read_text())
    assert set(report["by_group"]) == {"helpfulness", "honesty"}
