"""Splits of users into train, val and test, and of each user's choices into pools without common texts."""

import hashlib

import numpy as np


def split_users(users: list[str], seed: int) -> dict[str, str]:
    """Assigns every user to train, val or test, 80/10/10, by a hash that does not depend on the order of users.

    With at least three users no split is empty.
    """
    ordered = sorted(users, key=lambda user: hashlib.sha256(f"{seed}:{user}".encode()).digest())
    held_out = max(1, round(0.1 * len(users))) if len(users) >= 3 else 0
    names = ["val"] * held_out + ["test"] * held_out
    return {user: names[i] if i < len(names) else "train" for i, user in enumerate(ordered)}


def disjoint_pools(responses: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Splits one user's choices into a context (0) and a target (1) pool that share no text.

    Choices that share texts form a graph. Each connected component goes to the smaller pool, largest first. A component
    with most of the rows is cut in two, and texts are moved across the cut as long as that saves rows.

    Args:
      responses: (n, r) ids of the responses of the user's choices, −1 for none; the first two are real.

    Returns:
      (n,) pool of every row; −1 for a row whose texts are in different pools.
    """
    chosen = np.broadcast_to(responses[:, :1], responses.shape)
    # A choice connects its first response with each of the others.
    real = (responses >= 0) & (np.arange(responses.shape[1]) > 0)
    texts, flat = np.unique(np.concatenate([chosen[real], responses[real]]), return_inverse=True)
    pairs = flat.reshape(2, -1).T
    neighbours: list[list[int]] = [[] for _ in texts]
    for a, b in pairs:
        neighbours[a].append(int(b))
        neighbours[b].append(int(a))
    side = np.full(len(texts), -1)
    load = [0, 0]  # rows per pool, counted once per text of a row
    components = _components(neighbours, rng)
    for component in sorted(components, key=len, reverse=True):
        degrees = sum(len(neighbours[t]) for t in component)
        if degrees > 1.2 * len(pairs):  # more than 60 % of the rows
            _bisect(component, neighbours, side)
            for pool in (0, 1):
                load[pool] += sum(len(neighbours[t]) for t in component if side[t] == pool)
            continue
        pool = 0 if load[0] <= load[1] else 1
        side[component] = pool
        load[pool] += degrees
    number = np.searchsorted(texts, np.where(responses < 0, chosen, responses))
    sides = side[number]
    return np.where((sides == sides[:, :1]).all(1), sides[:, 0], -1)


def _components(neighbours: list[list[int]], rng: np.random.Generator) -> list[list[int]]:
    """Connected components, each in breadth-first order from a random text."""
    seen = np.zeros(len(neighbours), bool)
    components = []
    for start in rng.permutation(len(neighbours)):
        if seen[start]:
            continue
        seen[start] = True
        queue = [int(start)]
        for text in queue:
            for other in neighbours[text]:
                if not seen[other]:
                    seen[other] = True
                    queue.append(other)
        components.append(queue)
    return components


def _bisect(component: list[int], neighbours: list[list[int]], side: np.ndarray) -> None:
    """Cuts a component in two halves with few rows across: breadth-first halves, then greedy moves."""
    total = sum(len(neighbours[t]) for t in component)
    load = [0, 0]
    for text in component:
        side[text] = 0 if load[0] < total / 2 else 1
        load[side[text]] += len(neighbours[text])
    for _ in range(8):
        moved = False
        for text in component:
            mine = side[text]
            across = sum(side[other] != mine for other in neighbours[text])
            degree = len(neighbours[text])
            if 2 * across > degree and load[mine] - degree > 0.35 * total:
                side[text] = 1 - mine
                load[mine] -= degree
                load[1 - mine] += degree
                moved = True
        if not moved:
            break
