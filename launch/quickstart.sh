#!/usr/bin/env bash
# From a fresh machine to a report: environment, data, training, evaluation, and one person's choices at work.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
setup requirements.txt
run=${1:-runs/quickstart}
"$venv/bin/python" -m launch.train --config=configs/styles.py:np_btl --workdir="$run"
"$venv/bin/python" -m launch.evaluate --workdir="$run"
echo
echo "One held-out person's choices (chosen > rejected):"
"$venv/bin/python" -c '
import json, sys, textwrap
for line in open(sys.argv[1]):
    row = json.loads(line)
    a, b = (row["response_a"], row["response_b"]) if row["choice"] == 0 else (row["response_b"], row["response_a"])
    print("  +", textwrap.shorten(a, 110, placeholder=" …"))
    print("  -", textwrap.shorten(b, 110, placeholder=" …"), end="\n\n")
' "$run/report/example_choices.jsonl"
"$venv/bin/python" -m launch.steer --workdir="$run" --trace \
  --choices="$run/report/example_choices.jsonl" --responses="$run/report/example_responses.jsonl"
echo
echo "Report: $run/report/report.html"
