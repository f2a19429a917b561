"""Ranks or writes responses for a person, given some of their choices. Nothing is trained for the person.

  python -m launch.steer --workdir=runs/styles --choices=choices.jsonl --responses=responses.jsonl
  python -m launch.steer --workdir=runs/policy --choices=choices.jsonl --prompt="How do I get started with chess?"
  python -m launch.steer --workdir=runs/policy --choices=choices.jsonl --prompt="And chess?" --system="Be brief."
  python -m launch.steer --workdir=runs/policy --choices=choices.jsonl --prompt="And chess?" --best_of=8
  python -m launch.steer --workdir=runs/policy --people=a.jsonl,b.jsonl --blend=0,.25,.5,.75,1 --prompt="…"

choices, people: rows of prompt, response_a, response_b, choice (0 = a, 1 = b), one file per person; also of prompt,
response, and label or rating, where the model was trained on these. responses: rows of prompt, response. Responses to
the same prompt are ranked against each other. All are JSONL(.gz), CSV, Parquet or a `datasets` directory.
"""

from absl import flags

from fssa_jax import program
from fssa_jax.errors import UserError
from fssa_jax.experiment.load import load
from fssa_jax.people.choices import read_choices, read_responses
from fssa_jax.people.person import PersonPolicy
from fssa_jax.people.rank import format_rankings, rank
from fssa_jax.people.side_by_side import check_shares, format_written, write_for

_WORKDIR = flags.DEFINE_string("workdir", None, "work directory that launch.train wrote, or steering weights")
_CHOICES = flags.DEFINE_string("choices", None, "file of the person's choices")
_RESPONSES = flags.DEFINE_string("responses", None, "file of the responses to rank")
_BASE = flags.DEFINE_string("base", "", "current directory of a policy's language model, if it has moved")
_PROMPT = flags.DEFINE_multi_string("prompt", [], "prompt to write a response to")
_SYSTEM = flags.DEFINE_string("system", "", "system message in front of --prompt")
_PEOPLE = flags.DEFINE_list("people", [], "files of choices, one per person; writes for each person")
_BLEND = flags.DEFINE_list("blend", [], "weights of the second person, to write for mixtures of two --people")
program.define_strength_flag()
program.define_sampling_flags("as in the evaluation")
_BEST_OF = flags.DEFINE_integer(
    "best_of", 1, "write so many responses, and give the one that the person's reward model prefers", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "seed of the sampling", lower_bound=0)
_TRACE = flags.DEFINE_bool("trace", False, "also show how each choice changed the ranking")
_JSON = flags.DEFINE_bool("json", False, "print one JSON object per prompt instead of a table")
flags.adopt_module_key_flags(program)


def main() -> None:
    """Ranks --responses or answers --prompt, for the person of --choices or for each of --people."""
    if not _WORKDIR.value or bool(_CHOICES.value) == bool(_PEOPLE.value):
        raise UserError("--workdir and one of --choices and --people, not both, are needed; see --help")
    if bool(_RESPONSES.value) == bool(_PROMPT.value):
        raise UserError("give either --responses, to rank them, or --prompt, to write to it; see --help")
    of_writing = ("people", "blend", *program.SAMPLING, "strength", "seed", "system", "best_of")
    unused = ("trace",) if _PROMPT.value else of_writing
    kind, other = ("--prompt", "--responses") if _PROMPT.value else ("--responses", "--prompt")
    if name := next((name for name in unused if flags.FLAGS[name].present), None):
        raise UserError(f"--{name}: has no effect with {kind}; it is for {other}")
    if _PROMPT.value:
        _write()
        return
    responses, person = read_responses(_RESPONSES.value or ""), load(_WORKDIR.value, _BASE.value)
    choices = read_choices(_CHOICES.value or "", person.levels)
    print(format_rankings(len(choices), rank(person, choices, responses, _TRACE.value), _TRACE.value, _JSON.value))


def _write() -> None:
    """Answers --prompt; checks everything that can be checked before loading the model."""
    files = _PEOPLE.value or [_CHOICES.value or ""]
    if not all(file.strip() for file in files):
        raise UserError("--people: a name is empty; leave out the comma")
    for prompt in _PROMPT.value:
        program.check_text("prompt", prompt)
    if flags.FLAGS["system"].present:
        program.check_text("system", _SYSTEM.value)
    shares = program.parse_numbers("blend", _BLEND.value)
    check_shares(shares, len(files))
    given = program.writing_given()
    policy = load(_WORKDIR.value or "", _BASE.value)
    if not isinstance(policy, PersonPolicy):
        raise UserError(
            f"{_WORKDIR.value}: a reward model ranks responses but writes none; give the workdir of a policy"
        )
    people = {file: read_choices(file, policy.levels) for file in files}
    counted = not _PEOPLE.value
    system = [{"role": "system", "content": _SYSTEM.value}] if _SYSTEM.value else []
    prompts = [[*system, {"role": "user", "content": prompt}] for prompt in _PROMPT.value]
    written = write_for(
        policy, prompts, people, shares=shares, counted=counted, seed=_SEED.value, number=_BEST_OF.value, **given
    )
    print(format_written(prompts, written, _JSON.value))


if __name__ == "__main__":
    program.run(main, __doc__ or "")
