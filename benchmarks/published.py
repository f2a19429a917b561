"""The published reward network in PyTorch, written from its description, to be timed beside ours in one run."""

import itertools
import statistics
import time

try:
    import torch
    from torch import nn
except ImportError:  # torch is not a requirement
    torch = None

USERS, TARGETS, CONTEXT, WIDTH, HEADS = 64, 20, 10, 256, 8


def step_milliseconds(d: int, steps: int = 20) -> float | None:
    """Median time of one training step (forward, backward, AdamW) on random features; None without torch.

    At d = 1 an MLP on pairs and a Gaussian z whose KL divergence needs the targets encoded too; at larger d one
    linear layer and a deterministic z: the published configurations. Loading of data is left out.
    """
    if torch is None:
        return None
    torch.manual_seed(0)
    gaussian = d == 1

    def mlp(*widths: int) -> nn.Sequential:
        layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.ReLU(), nn.Linear(a, b))]
        return nn.Sequential(*layers[1:])

    encode = mlp(d, WIDTH, WIDTH)
    pair = mlp(2 * d, WIDTH, WIDTH) if gaussian else nn.Linear(2 * d, WIDTH)
    attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    outer = mlp(WIDTH, WIDTH, 2 * WIDTH if gaussian else WIDTH)
    decode = nn.Sequential(
        nn.Linear(2 * WIDTH, WIDTH, bias=False), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1, bias=False)
    )
    parameters = [p for module in (encode, pair, attention, outer, decode) for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def latent(pairs):
        h = pair(pairs.flatten(-2))
        return outer(attention(h, h, h)[0].sum(1))

    def loss(targets, context):
        z, kl = latent(context), 0.0
        if gaussian:
            q, p = (
                torch.distributions.Normal(mean, nn.functional.softplus(raw))
                for mean, raw in (x.chunk(2, -1) for x in (z, latent(targets)))
            )
            z, kl = q.rsample(), torch.distributions.kl_divergence(q, p).sum(-1).mean()
        z = z[:, None, None].expand(-1, TARGETS, 2, -1)
        rewards = decode(torch.cat([encode(targets), z], -1).flatten(0, 2)).view(USERS, TARGETS, 2)
        return -nn.functional.logsigmoid(rewards[..., 0] - rewards[..., 1]).mean() + kl

    targets, context = torch.randn(USERS, TARGETS, 2, d), torch.randn(USERS, CONTEXT, 2, d)
    times = []
    for _ in range(steps + 3):
        start = time.perf_counter()
        optimizer.zero_grad()
        loss(targets, context).backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    return round(1e3 * statistics.median(times[3:]), 1)
