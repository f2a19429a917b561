"""The published policy, which ours is timed beside, learns."""

from benchmarks import policy_speed, published
from tests.parity.families import torch


def test_what_is_timed_is_a_step_of_training(monkeypatch):
    steps = []

    class Recorded(torch.optim.AdamW):
        def step(self, closure=None):
            steps.append(sum(p.grad.abs().sum() for group in self.param_groups for p in group["params"]).item())
            return super().step(closure)

    monkeypatch.setattr(published.torch.optim, "AdamW", Recorded)
    assert policy_speed.measure("published", "tiny")["tokens_a_second"] > 0
    assert len(steps) == 4
    assert all(gradient > 0 for gradient in steps)
    assert len(set(steps)) == 4  # what is trained moves
