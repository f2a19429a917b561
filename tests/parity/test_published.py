"""The published policy, which ours is timed beside, learns."""

from benchmarks import policy_speed, published
from tests.parity.families import torch


def test_a_step_of_the_published_policy_is_timed_beside_ours(monkeypatch):
    steps = []

    class Recorded(torch.optim.AdamW):
        def step(self, closure=None):
            steps.append(sum(p.grad.abs().sum() for group in self.param_groups for p in group["params"]).item())
            return super().step(closure)

    monkeypatch.setattr(published.torch.optim, "AdamW", Recorded)
    out = policy_speed.measure(["published", "film"], policy_speed.SHAPES["tiny"])
    ratio = out["published"]["seconds_a_step"] / out["film"]["seconds_a_step"]
    assert out["film"]["times_as_fast_as_published"] == round(ratio, 2)
    assert len(steps) == 4
    assert all(gradient > 0 for gradient in steps)
    assert len(set(steps)) == 4  # what is trained moves
