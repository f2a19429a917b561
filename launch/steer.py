"""Ranks given responses for the person who made some choices. Nothing is trained for the person.

  python -m launch.steer --workdir=runs/styles --choices=choices.jsonl --responses=responses.jsonl

choices: rows of prompt, response_a, response_b, choice (0 = a, 1 = b), all by one person.
responses: rows of prompt, response. Responses to the same prompt are ranked among each other.
Both are JSONL(.gz), CSV, Parquet or a `datasets` directory.
"""

import json
from pathlib import Path

from absl import flags

from fssa_jax import program, steer
from fssa_jax.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "what launch.train wrote")
_CHOICES = flags.DEFINE_string("choices", None, "file of the person's choices")
_RESPONSES = flags.DEFINE_string("responses", None, "file of the responses to rank")
_TRACE = flags.DEFINE_bool("trace", False, "also show how each choice changed the ranking")
_JSON = flags.DEFINE_bool("json", False, "print one JSON object a prompt instead of a table")


def main() -> None:
    """Ranks --responses for the maker of --choices."""
    if not (_WORKDIR.value and _CHOICES.value and _RESPONSES.value):
        raise UserError("--workdir, --choices and --responses are needed; see --help")
    rows, rankings = steer.steer(Path(_WORKDIR.value), _CHOICES.value, _RESPONSES.value)
    if not _JSON.value:
        print(f"After {len(rows)} choices (arrows: places moved since before the first):")
    for ranking in rankings:
        if not _JSON.value:
            print(steer.format_ranking(ranking, _TRACE.value))
            continue
        order = ranking.order
        print(json.dumps({
            "prompt": ranking.prompt,
            "responses": [ranking.responses[i] for i in order],
            "rewards": [float(ranking.rewards[-1, i]) for i in order],
            "probabilities": [float(ranking.probabilities[-1, i]) for i in order],
        }, ensure_ascii=False))  # fmt: skip


if __name__ == "__main__":
    program.run(main, __doc__ or "")
