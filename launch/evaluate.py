"""Evaluates a work directory on held-out people and writes its report/.

  python -m launch.evaluate --workdir=runs/styles
  python -m launch.evaluate --workdir=runs/styles --data=other_people.jsonl
  python -m launch.evaluate --workdir=runs/mine --folds=5
  python -m launch.evaluate --workdir=runs/policy --quick
  python -m launch.evaluate --workdir=runs/policy --interval=8

Prints the table and the path of report.html; report.json and the pictures are next to it. The report on the test users
is WORKDIR/report, that on --data=ROWS is WORKDIR/report-ROWS. Reports of different rows never replace each other.
With --folds=N the reward model is trained anew for each of N folds of all people, so that everybody is scored by a
model that did not see them. That report is WORKDIR/report-folds.

A policy runs its language model on every response of every context. --quick scores few people and writes at the
smallest and the largest k; its report is WORKDIR/quick/report. --interval=POINTS takes as many people as are needed
for 95 % intervals of ± POINTS, of the steering score and of the movement of what is written. --full scores all people
and all targets, and writes for everybody. Without any of them, config.evaluate of the work directory holds. How much
is scored and written is said first, with the intervals to expect, and the time, if an evaluation before tells it.
"""

from pathlib import Path

from absl import flags

from fssa_jax import program
from fssa_jax.errors import UserError
from fssa_jax.experiment.cross_validate import REPORT, cross_validate
from fssa_jax.experiment.evaluate import evaluate_workdir
from fssa_jax.experiment.reports import report_directory
from fssa_jax.report.tables import format_generation, format_table

_WORKDIR = flags.DEFINE_string("workdir", None, "work directory that launch.train wrote")
_DATA = flags.DEFINE_string("data", "", "rows of other people to score instead of the test split")
_BASE = flags.DEFINE_string("base", "", "current directory of a policy's language model, if it has moved")
_K = flags.DEFINE_list("k", None, "context sizes to score, such as 0,2,8; default: config.evaluate.k of the workdir")
_SPLIT = flags.DEFINE_enum("split", "test", ["test", "val"], "which split of the workdir's own data to score")
_FOLDS = flags.DEFINE_integer("folds", 0, "score everybody once, in so many folds of all people; 0 for held-out people")
_QUICK = flags.DEFINE_bool("quick", False, "of a policy: few people, for a first look")
_INTERVAL = flags.DEFINE_float("interval", None, "of a policy: half of the 95 % intervals, in points", 0.1, 100)
_FULL = flags.DEFINE_bool("full", False, "of a policy: all people and all targets")


def main() -> None:
    """Evaluates --workdir."""
    if not _WORKDIR.value:
        raise UserError("--workdir is needed; see --help")
    if _K.value and not all(k.isascii() and k.isdigit() and len(k) < 5 for k in _K.value):
        raise UserError(f"--k: needs context sizes such as 0,2,8, below 10000; got {','.join(_K.value)}")
    if _DATA.value and flags.FLAGS["split"].present:
        raise UserError("--split: chooses among the workdir's own people and has no effect with --data; leave it out")
    ks = tuple(int(k) for k in _K.value or ())
    workdir = Path(_WORKDIR.value)
    budgets = [f"--{name}" for name in ("quick", "interval", "full") if flags.FLAGS[name].value]
    if len(budgets) > 1:
        raise UserError(f"{budgets[0]}: is another budget than {budgets[1]}; give one of them")
    if flags.FLAGS["folds"].present:
        if _DATA.value or _BASE.value or flags.FLAGS["split"].present or budgets:
            raise UserError("--folds: scores all people of the work directory; give only --workdir and --k with it")
        where, result = workdir / REPORT, cross_validate(workdir, _FOLDS.value, ks)
    else:
        where = report_directory(workdir, _DATA.value, _SPLIT.value, _QUICK.value)
        budget = _INTERVAL.value or ("quick" if _QUICK.value else "full" if _FULL.value else "configured")
        result = evaluate_workdir(workdir, _DATA.value, _SPLIT.value, ks, _BASE.value, budget)
    print(format_table(result))
    if "generation" in result:
        print(format_generation(result))
    for warning in result["warnings"]:
        print(f"warning: {warning}")
    print(f"Report: {where / 'report.html'}")


if __name__ == "__main__":
    program.run(main, __doc__ or "")
