#!/usr/bin/env bash
# From a fresh machine to a language model that follows a person's choices: environment, base model, reward model,
# policy, evaluation, and what it writes for two people who want the opposite. Nothing is downloaded but packages.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
setup requirements.txt
started=$SECONDS
run=${1:-runs/quickstart}
say() { printf '\n== %s\n' "$*"; }
say "1 of 4: a small language model that writes in every style"
"$venv/bin/python" -m launch.train --config=configs/styles.py:sft --workdir="$run/base"
say "2 of 4: a reward model that reads a person's choices (NP-BTL)"
"$venv/bin/python" -m launch.train --config=configs/styles.py:np_btl --workdir="$run/reward" \
  --config.train.specialist_steps=0
"$venv/bin/python" -m launch.evaluate --workdir="$run/reward"
say "One person's choices, and how each of them moved the ranking of new responses"
"$venv/bin/python" -m launch.steer --workdir="$run/reward" --trace \
  --choices="$run/reward/report/example_choices.jsonl" --responses="$run/reward/report/example_responses.jsonl"
say "3 of 4: a policy that the choices steer (NP-DPO)"
"$venv/bin/python" -m launch.train --config=configs/styles.py:np_dpo_lora_core --workdir="$run/policy" \
  --config.policy.base="$run/base/model" --config.encoder.init_from="$run/reward" --config.train.specialist_steps=0 \
  --config.train.steps=400 --config.evaluate.users=100 --config.evaluate.targets=10 --config.evaluate.shuffles=1 \
  --config.evaluate.in_context_users=6 --config.evaluate.generate.best_of_prompts=8
"$venv/bin/python" -m launch.evaluate --workdir="$run/policy"
say "4 of 4: two people who want the opposite"
"$venv/bin/python" -c '
import json, sys, textwrap
for name in sys.argv[1:]:
    rows = [json.loads(line) for line in open(name)]
    print(rows[0]["user_id"], "(the first of their choices, chosen above rejected):")
    for row in rows[:3]:
        a, b = (row["response_a"], row["response_b"]) if row["choice"] == 0 else (row["response_b"], row["response_a"])
        print("  +", textwrap.shorten(a, 110, placeholder=" …"))
        print("  -", textwrap.shorten(b, 110, placeholder=" …"), end="\n\n")
' "$run/policy/report/person_a.jsonl" "$run/policy/report/person_b.jsonl"
"$venv/bin/python" -m launch.steer --workdir="$run/policy" \
  --prompt="What is your best advice about yoga?" --prompt="How do I get started with pancakes?" \
  --people="$run/policy/report/person_a.jsonl,$run/policy/report/person_b.jsonl"
printf '\nReports: %s and %s\n' "$run/policy/report/report.html" "$run/reward/report/report.html"
printf '%s s after installation\n' "$((SECONDS - started))"
