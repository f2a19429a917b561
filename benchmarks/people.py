"""NP-BTL as it is shipped, on many kinds of people, next to a population model, a MAP factor model and a mixed logit.

  python -m benchmarks.people --data=polis.jsonl.gz,electricity.jsonl.gz,raters,kinds --seeds=0,1,2 --room=runs/people

A data set is a file of rows or a word: raters, tastes, kinds, kinds40 and noise are made-up people
(benchmarks/people_data.py). Each is trained with every seed by configs/rows.py:np_btl with its defaults; people without
a split of their own are divided anew by every seed. All models predict the same targets of the same test people after
the same contexts:

* population: the population model of the same work directory.
* map: a factor model, maximum a posteriori; settings chosen on validation people (benchmarks/factor_models.py).
* mixed_logit: with normal coefficients of at most eight columns, the first principal components of the features; and
  attributes, the same with the attributes that the modellers of stated choices use, which the other models do not know.
* np_btl: with its calibration.
* limit: the Bayes limit, for made-up people.

Files of --lists hold pairs that are a choice of one of n, and become one. In those of --situations texts repeat by
design, and each row is a situation of its own. A k that less than half of the test people reach is left out; people who
do not reach the largest k are not scored.

Prints JSON: per data set, series and k the accuracy in %, NLL in nats, ECE, what ECE would be by chance, and the worst
decile in %, means over seeds; differences of accuracy in points and of NLL in nats, paired within people and averaged
over seeds, with standard errors over people; and goals, which are met or not. Work directories and results are kept in
--room: the same command goes on where it was interrupted.
"""

import json
import sys
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks.people_data import MADE_UP, name_of
from benchmarks.people_scores import Settings, markdown, stored, summary
from fssa_jax import program
from fssa_jax.errors import UserError

_DATA = flags.DEFINE_list("data", [], f"files of rows, and made-up people: {', '.join(MADE_UP)}")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds of the models and of the division of people")
_ROOM = flags.DEFINE_string("room", "", "directory for rows, work directories and results, which are reused")
_DRAWS = flags.DEFINE_integer("draws", 8, "random nested contexts a person", lower_bound=1)
_LISTS = flags.DEFINE_list("lists", ["electricity.jsonl.gz"], "files whose pairs are choices of one of n")
_SITUATIONS = flags.DEFINE_list("situations", ["trainchoice.jsonl.gz"], "files whose texts repeat by design")
_MIXED = flags.DEFINE_bool("mixed_logit", True, "also fit the mixed logit, which needs xlogit")
_MARKDOWN = flags.DEFINE_bool("markdown", False, "also write the tables as Markdown to stderr")


def main() -> None:
    """Measures every data set with every seed, and prints the summaries."""
    if not _DATA.value:
        raise UserError(f"--data: name files of rows or made-up people: {', '.join(MADE_UP)}")
    if not _ROOM.value:
        raise UserError("--room: name the directory for work directories and results")
    names = [name_of(data) for data in _DATA.value]
    if len(set(names)) < len(names):
        raise UserError(f"--data: two data sets have the same name; the names are {', '.join(names)}")
    room = Path(_ROOM.value)
    room.mkdir(parents=True, exist_ok=True)
    settings = Settings(room, _DRAWS.value, _LISTS.value, _SITUATIONS.value, _MIXED.value)
    seeds = [int(seed) for seed in program.parse_numbers("seeds", _SEEDS.value)]
    out: dict[str, Any] = {"seeds": seeds, "draws": _DRAWS.value}
    for data, name in zip(_DATA.value, names, strict=True):
        out[name] = summary([stored(data, seed, settings) for seed in seeds])
        if _MARKDOWN.value:
            print(markdown(name, out[name]), file=sys.stderr)
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    program.run(main, __doc__ or "")
