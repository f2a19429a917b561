"""The published networks in PyTorch, written from their description, to be timed next to ours in one run."""

import copy
import itertools
import statistics
import time

from fssa_jax.models.decoder import DecoderConfig

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


def policy_step_seconds(config: DecoderConfig, length: int, pairs: int, latent: int = 64, steps: int = 3) -> float:
    """The best of some training steps of the published policy on random tokens, in float32, on all processors.

    A Qwen2 of the Transformers library, frozen, with a LoRA of rank 128 on query and value, FiLM from a latent on the
    output of every block, DPO with the reference's log-probabilities from a second copy of the base at every step, and
    AdamW; the encoder, which is small next to it, and the loading of data are left out. `pairs` is a step's number of
    choices: twice as many sequences of `length` tokens.
    """
    from transformers import Qwen2Config, Qwen2ForCausalLM

    assert torch is not None
    torch.manual_seed(0)
    shape = Qwen2Config(
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.groups,
        intermediate_size=config.mlp_width,
        tie_word_embeddings=config.tied,
        use_cache=False,
    )
    policy = Qwen2ForCausalLM(shape).requires_grad_(False)
    reference = copy.deepcopy(policy)
    scales, shifts = (nn.ModuleList(nn.Linear(latent, config.width) for _ in range(config.layers)) for _ in range(2))
    factors = nn.ModuleList()
    z = torch.randn(2 * pairs, latent)

    def modulated(i: int):
        def after(module, inputs, output):
            hidden = output[0] if isinstance(output, tuple) else output
            hidden = hidden * (1 + scales[i](z)[:, None]) + shifts[i](z)[:, None]
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return after

    def beside(down: nn.Linear, up: nn.Linear):
        return lambda module, inputs, output: output + up(down(inputs[0]))

    for i, block in enumerate(policy.model.layers):
        block.register_forward_hook(modulated(i))
        for projection in (block.self_attn.q_proj, block.self_attn.v_proj):
            down = nn.Linear(projection.in_features, 128, bias=False)
            up = nn.Linear(128, projection.out_features, bias=False)
            nn.init.zeros_(up.weight)
            factors.extend((down, up))
            projection.register_forward_hook(beside(down, up))
    trained = [p for part in (scales, shifts, factors) for p in part.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    tokens = torch.randint(config.vocabulary, (2 * pairs, length))
    response = torch.arange(1, length) >= length * 2 // 5

    def log_probability(model):
        logits = model(tokens).logits[:, :-1].float().log_softmax(-1)
        return (logits.gather(-1, tokens[:, 1:, None])[..., 0] * response).sum(-1)

    times = []
    for _ in range(steps + 1):
        begun = time.perf_counter()
        with torch.no_grad():
            expected = log_probability(reference)
        chosen, rejected = (log_probability(policy) - expected).chunk(2)
        optimizer.zero_grad()
        (-nn.functional.logsigmoid(0.05 * (chosen - rejected)).mean()).backward()
        optimizer.step()
        times.append(time.perf_counter() - begun)
    return min(times[1:])
