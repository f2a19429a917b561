"""pmap on 8 simulated devices equals one device: losses, parameters, and who draws what."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from fssa_jax.errors import UserError
from fssa_jax.experiment.train import train
from fssa_jax.experiment.workdir import Workdir
from fssa_jax.train import parallel
from tests import small_lm, tiny

_CHILD = """
import json, pathlib, tempfile
import jax, numpy as np
from fssa_jax.train import parallel
from fssa_jax.tasks.reward import reward_loss
from fssa_jax.train.batches import plain_calls
from fssa_jax.train.state import make_optimizer, start_state
from fssa_jax.train.step import make_step
from tests import tiny

task = tiny.task(pathlib.Path(tempfile.mkdtemp()))
task.config.model.head = "concat"
task.config.optim.eps = 1e-2  # Adam would turn the last bit of a tiny gradient into a whole step
optimizer = make_optimizer(task.config.optim, 50)
draw, tables = task.draw("main"), task.tables("train")

def init(key, tables):
    return task.model().clone(norm="batch").init(key, draw(jax.random.split(key, 2), tables).episode, tables.features)

out = {}
for mode in ("none", "pmap"):
    axis = parallel.AXIS if mode == "pmap" else None
    loss = reward_loss(task.model().clone(norm="batch", axis_name=axis), task.config.objective)
    step = make_step(loss, draw, optimizer, users=16, seed=0, axis_name=axis)
    start = start_state(jax.jit(init)(jax.random.key(0), tables), optimizer)
    state, metrics = plain_calls(step, tables, mode)(parallel.replicate(start, mode), 0, 4)
    stats = [np.asarray(x) for x in jax.tree.leaves(state.batch_stats)]
    leaves = [*stats, *(np.asarray(x) for x in jax.tree.leaves(state.params))]
    out[mode] = (np.asarray(metrics["loss"]), leaves)
difference = max(float(np.abs(a - b).max()) for a, b in zip(out["none"][1], out["pmap"][1], strict=True))
print(json.dumps({
    "devices": jax.device_count(), "difference": difference, "resolved": parallel.resolve("auto", 16),
    "losses": [x[0].tolist() for x in out.values()], "statistics": len(stats),
}))
"""

pytestmark = pytest.mark.devices


_POLICY = """
import json, pathlib, sys, tempfile
import jax, numpy as np
from fssa_jax.train import parallel
from fssa_jax.experiment.make import make
from fssa_jax.config import FrozenEncoder
from fssa_jax.train.batches import padded_calls
from tests import tiny, tiny_policy
from tests.policy_steps import rows_of, start, step_of

room = pathlib.Path(tempfile.mkdtemp())
base = tiny_policy.base(room / "base")
rows = tiny.write_rows(room / "rows.jsonl", tiny.rows())
config = tiny_policy.config(rows, base, users=16, accumulate=2)
config.optim.eps, config.optim.warmup_steps = 1e-2, 0
config.train.share_prompts = sys.argv[1]
work = make(config, room / "run")
# A reward model that stays as it is and weights the responses; from random init it serves as well.
work.config.encoder = FrozenEncoder(imitate="advantage", model=work.config.encoder.model)
task = work.task
optimizer, tables = task.optimizer("main"), task.tables("train")
begin = start(task, optimizer, moved=True)
out, groups = [], []
for mode in ("none", "pmap"):
    axis, plans = parallel.AXIS if mode == "pmap" else None, []
    advance = padded_calls(
        lambda plan: plans.append(plan) or step_of(task, optimizer, plan, axis),
        lambda step, tables: task.texts(rows_of(task, step, tables)),
        tables, mode, steps=2, steps_per_call=config.train.steps_per_call, accumulate=2,
        buckets=config.train.length_buckets,
    )
    state = parallel.replicate(jax.tree.map(lambda x: x + 0, begin), mode)
    state, metrics = advance(state, 0, 2)
    groups.append([[rows for rows, _ in plan] for plan in plans])
    out.append((np.asarray(metrics["loss"]).tolist(), [np.asarray(x) for x in jax.tree.leaves(state.params)]))
difference = max(float(np.abs(a - b).max()) for a, b in zip(out[0][1], out[1][1], strict=True))
print(json.dumps({
    "devices": jax.device_count(), "difference": difference, "losses": [x[0] for x in out], "groups": groups,
}))
"""


def simulated(devices: int) -> dict[str, str]:
    """The environment of a process that sees so many devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


@pytest.mark.parametrize("share", ["no", "yes"])
def test_a_policy_step_on_eight_devices_is_that_of_one(share):
    child = subprocess.run(
        [sys.executable, "-c", _POLICY, share],
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
    # Each device pads its own parts, of one person's four texts each, by length; shared prompts make two rows of them.
    assert result["groups"] == ([[[16, 16]], [[2, 2]]] if share == "no" else [[[16]], [[2]]])


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
    assert result["statistics"] == 2
    assert result["difference"] < 1e-5


def test_users_that_cannot_be_shared_are_named(monkeypatch):
    monkeypatch.setattr("jax.device_count", lambda: 8)
    with pytest.raises(UserError, match="12 cannot be shared by 8 devices"):
        parallel.resolve("auto", 12)
    assert parallel.resolve("none", 12) == "none"


_TRAIN = """
import json, pathlib, sys
import jax, numpy as np
from fssa_jax.experiment.train import train
from fssa_jax.experiment.workdir import Workdir
from tests import tiny

directory = pathlib.Path(sys.argv[1])
config = tiny.config(tiny.write_rows(directory / "rows.jsonl", tiny.rows()), specialist_steps=0)
config.train.parallel = sys.argv[2]
config.optim.eps = 1e-2
workdir = directory / sys.argv[2]
train(config, workdir)
work = Workdir.open(workdir)
leaves = [np.asarray(x).tolist() for x in jax.tree.leaves(work.trained()[0])]
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
    config = tiny.config(tmp_path / "rows.jsonl", specialist_steps=0)
    config.train.parallel, config.optim.eps = "none", 1e-2
    train(config, tmp_path / "one")
    one = jax.tree.leaves(Workdir.open(tmp_path / "one").trained()[0])
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
