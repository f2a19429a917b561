"""What a chat model writes before and after ten choices, for held-out people of `chat`. Prints Markdown.

  python -m benchmarks.chat_examples --steering=steering/smollm2 --number=10 --draw=0 > docs/chat.md

People and prompts are drawn from the test split by --draw, and every response is printed: nothing is selected. The
people are those of the seed that the steering weights were trained with.
"""

from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from fssa_jax import program
from fssa_jax.config import Chat, Evaluation, RewardTraining
from fssa_jax.data.benchmarks import chat
from fssa_jax.data.build import load_dataset
from fssa_jax.data.dataset import choice_records
from fssa_jax.errors import UserError
from fssa_jax.experiment.load import load
from fssa_jax.people.person import PersonPolicy
from fssa_jax.people.side_by_side import write_for

_STEERING = flags.DEFINE_string("steering", "steering/smollm2", "steering weights, or the work directory of a policy")
_NUMBER = flags.DEFINE_integer("number", 10, "people, one prompt each", lower_bound=1)
_DRAW = flags.DEFINE_integer("draw", 0, "seed by which people, prompts and tokens are drawn", lower_bound=0)

_HEAD = """# Before and after ten choices

SmolLM2-135M-Instruct, steered by the weights in `{steering}`. People and prompts are of the test split of `chat` (see
[results.md](results.md)): no training person is among them, and no training prompt. They were drawn by seed {draw}, and
all of them are shown. What a person wants is what their simulated choices come from; the model sees only ten of these.
A model of 135M parameters says much that is wrong, and some that is dangerous: read the manner, not the advice.

```bash
python -m benchmarks.chat_examples --steering={steering} --number={number} --draw={draw}
```
"""


def main() -> None:
    """Prints the responses side by side."""
    policy = load(_STEERING.value)
    if not isinstance(policy, PersonPolicy) or not isinstance(policy.task.config.data, Chat):
        raise UserError(f"{_STEERING.value}: was not trained on chat; give steering weights of configs/chat.py")
    # The people of the reward model: a draw of other sizes is of other people.
    dataset = load_dataset(policy.task.config.data, max(Evaluation().k), RewardTraining().targets)
    split, known = dataset.splits["test"], chat.chat_texts()
    if _NUMBER.value > len(split.users):
        raise UserError(f"--number: there are {len(split.users)} people; give fewer")
    asked = {number: prompt for number, (prompt, _) in zip(known.prompt, known.texts, strict=True)}
    rng = np.random.default_rng(_DRAW.value)
    print(_HEAD.format(steering=Path(_STEERING.value), draw=_DRAW.value, number=_NUMBER.value))
    for user in rng.choice(len(split.users), _NUMBER.value, replace=False):
        choices: Any = choice_records(split, dataset.texts, int(user), 10)
        judged = {row["prompt"] for row in choices}
        prompt = rng.choice([asked[number] for number in known.splits["test"] if asked[number] not in judged])
        [written] = write_for(policy, [str(prompt)], {"": choices}, counted=True, seed=_DRAW.value)
        wants = split.users[user].partition(": ")[2]
        print(f"## {prompt}\n\nThe person wants: {wants}.")
        for one in written:
            quoted = "\n".join(f"> {line}".rstrip() for line in one.text.splitlines() or [""])
            print(f"\n*{one.name}:*\n\n{quoted}")
        print(flush=True)


if __name__ == "__main__":
    program.run(main, __doc__ or "")
