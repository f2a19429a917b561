"""pmap on 8 simulated devices equals one device: losses, parameters, and who draws what."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from fssa_jax.errors import UserError
from fssa_jax.experiment import train_reward as train
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.train import parallel
from tests import small_lm, tiny

_CHILD = """
import json, pathlib, sys, tempfile
import jax, numpy as np
from fssa_jax.train import parallel
from fssa_jax.tasks.reward import make_model, training_data
from fssa_jax.train.step import init_state, make_optimizer, make_train_step, many_steps
from tests import tiny

config, dataset, draw = tiny.dataset(pathlib.Path(tempfile.mkdtemp()))
config.model.norm, config.model.head = "batch", "concat"
config.optim.eps = 1e-2  # Adam would turn the last bit of a tiny gradient into a whole step
optimizer = make_optimizer(config.optim, 50)
out = {}
for mode in ("none", "pmap"):
    axis = parallel.AXIS if mode == "pmap" else None
    model = make_model(config, dataset, "main", axis)
    data = parallel.replicate(training_data(config, dataset), mode)
    state = parallel.replicate(init_state(model, optimizer, 0, training_data(config, dataset), draw), mode)
    step = make_train_step(model, optimizer, draw, config.objective, users=16, seed=0, axis_name=axis)
    state, metrics = parallel.compile_steps(many_steps(step, 4), mode)(state, data)
    leaves = [np.asarray(x) for x in jax.tree.leaves((state.params, state.batch_stats))]
    out[mode] = (np.asarray(metrics["loss"]), leaves)
difference = max(float(np.abs(a - b).max()) for a, b in zip(out["none"][1], out["pmap"][1]))
print(json.dumps({
    "devices": jax.device_count(), "difference": difference, "resolved": parallel.resolve("auto", 16),
    "losses": [x[0].tolist() for x in out.values()],
}))
"""


_POLICY = """
import json, pathlib, tempfile
import jax, numpy as np
from fssa_jax.train import parallel
from functools import partial
from fssa_jax.tasks.policy import make_policy_step
from fssa_jax.experiment.train_policy import make_state, planned, texts_of_batch
from fssa_jax.experiment.policy_workdir import PolicyWorkdir
from tests import tiny, tiny_policy

room = pathlib.Path(tempfile.mkdtemp())
base = tiny_policy.base(room / "base")
config = tiny_policy.config(tiny.write_rows(room / "rows.jsonl", tiny.rows()), base, users=16, accumulate=2)
config.optim.eps, config.optim.warmup_steps = 1e-2, 0
work = PolicyWorkdir.make(config, room / "run")
work.config.objective.sft = "advantage"
conditioner, optimizer, start = make_state(work, "main")
start.params["hyper"] = jax.tree.map(lambda x: x + 0.1, start.params["hyper"])
out, groups = [], []
for mode in ("none", "pmap"):
    axis = parallel.AXIS if mode == "pmap" else None
    step, plans = partial(make_policy_step, conditioner, work.base.decoder, optimizer, work.config, axis_name=axis), []
    ids = texts_of_batch(work.config, conditioner)
    advance = planned(
        lambda plan: plans.append(plan) or step(plan=plan), ids, work.data("train"), work.config.train, 2, mode
    )
    state = parallel.replicate(jax.tree.map(lambda x: x + 0, start), mode)
    state, metrics = advance(state, 0, 2)
    groups.append([[rows for rows, _ in plan] for plan in plans])
    out.append((np.asarray(metrics["loss"]).tolist(), [np.asarray(x) for x in jax.tree.leaves(state.params)]))
difference = max(float(np.abs(a - b).max()) for a, b in zip(out[0][1], out[1][1]))
print(json.dumps({
    "devices": jax.device_count(), "difference": difference, "losses": [x[0] for x in out], "groups": groups,
}))
"""


def simulated(devices: int) -> dict[str, str]:
    """The environment of a process that sees so many devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def test_a_policy_step_on_eight_devices_is_that_of_one():
    child = subprocess.run(
        [sys.executable, "-c", _POLICY],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, **simulated(8)},
    )
    assert child.returncode == 0, child.stderr
    result = json.loads(child.stdout.splitlines()[-1])
    assert result["devices"] == 8
    one, eight = result["losses"]
    assert one == pytest.approx(eight, rel=1e-4)
    assert one[0] != one[1]
    assert result["difference"] < 1e-4
    # Each device pads its own parts, of one person's four texts each, by length.
    assert result["groups"] == [[[16, 16]], [[2, 2]]]


def test_eight_devices_compute_what_one_does():
    child = subprocess.run(
        [sys.executable, "-c", _CHILD],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, **simulated(8)},
    )
    assert child.returncode == 0, child.stderr
    result = json.loads(child.stdout.splitlines()[-1])
    assert result["devices"] == 8
    assert result["resolved"] == "pmap"
    one, eight = result["losses"]
    assert one == pytest.approx(eight, rel=1e-4)
    assert len(set(one)) == 4
    assert result["difference"] < 1e-5


def test_users_that_cannot_be_shared_are_named(monkeypatch):
    monkeypatch.setattr("jax.device_count", lambda: 8)
    with pytest.raises(UserError, match="12 cannot be shared by 8 devices"):
        parallel.resolve("auto", 12)
    assert parallel.resolve("none", 12) == "none"


_TRAIN = """
import dataclasses, json, pathlib, sys
import jax, numpy as np
from fssa_jax.experiment import train_reward as train
from fssa_jax.experiment.workdir import Workdir
from tests import tiny

directory = pathlib.Path(sys.argv[1])
config = tiny.config(tiny.write_rows(directory / "rows.jsonl", tiny.rows()), oracle_steps=0)
config.train.parallel = sys.argv[2]
config.optim.eps = 1e-2
workdir = directory / sys.argv[2]
train.train(config, workdir)
work = Workdir.open(workdir)
leaves = [np.asarray(x).tolist() for x in jax.tree.leaves(work.trained().variables)]
print(json.dumps({"devices": jax.device_count(), "parallel": work.run["parallel"], "leaves": leaves}))
"""


def test_training_on_eight_devices_equals_training_on_one(tmp_path):
    """The whole loop under pmap: transfer guard, validation, checkpoints, the end state."""
    done = subprocess.run(
        [sys.executable, "-c", _TRAIN, str(tmp_path), "pmap"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, **simulated(8)},
    )
    assert done.returncode == 0, done.stderr
    eight = json.loads(done.stdout)
    assert (eight["devices"], eight["parallel"]) == (8, "pmap")
    config = tiny.config(tmp_path / "rows.jsonl", oracle_steps=0)
    config.train.parallel, config.optim.eps = "none", 1e-2
    train.train(config, tmp_path / "one")
    one = jax.tree.leaves(Workdir.open(tmp_path / "one").trained().variables)
    for a, b in zip(one, eight["leaves"], strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


_EMBED = """
import json, pathlib, sys
import jax
from fssa_jax.lm.text_encoder import EmbedSettings, TextEncoder
encoder = TextEncoder(EmbedSettings(sys.argv[1]))
texts = [("", "how do I bake bread " * (i % 4 + 1)) for i in range(21)]
print(json.dumps({"devices": encoder.devices, "vectors": encoder.embed(texts).tolist()}))
"""


def test_embedding_on_eight_devices_equals_embedding_on_one(tmp_path):
    small_lm.save_bert(tmp_path / "bert")
    out = []
    for devices in (1, 8):
        flags = simulated(devices)
        done = subprocess.run(
            [sys.executable, "-c", _EMBED, str(tmp_path / "bert")],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, **flags},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        out.append(json.loads(done.stdout))
    assert [o["devices"] for o in out] == [1, 8]
    np.testing.assert_allclose(out[0]["vectors"], out[1]["vectors"], atol=1e-5)
