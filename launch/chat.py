"""Asks a person which responses they like, and writes for them: before and after their choices, with one model.

  python -m launch.chat --steering=steering/mine
  python -m launch.chat --steering=steering/mine --choices=me.jsonl --prompt="How do I get started with chess?"
  python -m launch.chat --steering=steering/mine --save=me.jsonl

steering: what `launch.convert --steering` wrote, or the work directory of a policy. In a terminal ten pairs of
responses are shown (--pairs names other ones: rows of prompt, response_a, response_b), and after them every question of
yours is answered twice: by the language model as it is for everybody, and as your choices make it. --choices takes
choices from a file instead of asking. --prompt answers these questions and ends. Nothing is trained for the person.
"""

import json
from pathlib import Path
from typing import Any

from absl import flags

from fssa_jax import program
from fssa_jax.errors import UserError, printable
from fssa_jax.experiment.load import load
from fssa_jax.experiment.steering import is_steering, pairs_of
from fssa_jax.files import write_text
from fssa_jax.people.ask import ask, questions, read_pairs, shown
from fssa_jax.people.choices import read_choices
from fssa_jax.people.person import PersonPolicy
from fssa_jax.people.side_by_side import write_for

_STEERING = flags.DEFINE_string("steering", "", "steering weights, or the work directory of a policy")
_BASE = flags.DEFINE_string("base", "", "current directory of the language model, if it has moved")
_PAIRS = flags.DEFINE_string("pairs", "", "file of pairs to ask about")
_CHOICES = flags.DEFINE_string("choices", "", "file of the person's choices, instead of asking")
_N = flags.DEFINE_integer("n", 10, "choices to ask for", lower_bound=0)
_SAVE = flags.DEFINE_string("save", "", "JSONL file for the choices that were made")
_PROMPT = flags.DEFINE_multi_string("prompt", [], "question to answer before and after the choices")
_SEED = flags.DEFINE_integer("seed", 0, "seed of the sampling", lower_bound=0)
program.define_strength_flag()
program.define_sampling_flags("as in the evaluation")
flags.adopt_module_key_flags(program)


def main() -> None:
    """Takes a person's choices and answers questions before and after them."""
    if not _STEERING.value:
        raise UserError("--steering is needed; see --help")
    if unused := next((n for n in ("pairs", "save", "n") if _CHOICES.value and flags.FLAGS[n].present), None):
        raise UserError(f"--{unused}: has no effect with --choices, which takes the place of asking")
    for prompt in _PROMPT.value:
        program.check_text("prompt", prompt)
    how = program.writing_given()
    pairs = [] if _CHOICES.value else _pairs()
    policy = load(_STEERING.value, _BASE.value)
    if not isinstance(policy, PersonPolicy):
        raise UserError(f"{_STEERING.value}: a reward model writes nothing; give steering weights or a policy")
    if policy.limit is not None and policy.limit < _N.value and not _CHOICES.value:
        raise UserError(f"--n: the policy reads at most {policy.limit} choices")
    if _SAVE.value:
        write_text(Path(_SAVE.value), "")  # before anybody is asked for nothing
    choices: Any = read_choices(_CHOICES.value, policy.levels) if _CHOICES.value else ask(pairs, _N.value)
    if _SAVE.value:
        write_text(Path(_SAVE.value), "".join(json.dumps({"user_id": "you"} | row) + "\n" for row in choices))
    print(f"\n{len(choices)} choices. Nothing is trained: an adapter is emitted from them.", flush=True)
    for seed, prompt in enumerate(_PROMPT.value or questions(), start=_SEED.value):
        try:
            [written] = write_for(policy, [prompt], {"you": choices}, counted=True, seed=seed, **how)
        except UserError as error:
            if _PROMPT.value:
                raise
            print(error)  # of a question that was typed: the next one may fit
            continue
        print("\n" + printable(prompt), *(shown(f"{one.name}:", one.text) for one in written), sep="\n", flush=True)


def _pairs() -> list[Any]:
    where = Path(_STEERING.value)
    if not where.is_dir():
        raise UserError(f"{where}: no such directory; give steering weights or the work directory of a policy")
    if not _PAIRS.value and not is_steering(where):
        raise UserError("--pairs or --choices is needed with a work directory; see --help")
    return read_pairs(_PAIRS.value) if _PAIRS.value else pairs_of(where)


if __name__ == "__main__":
    program.run(main, __doc__ or "")
