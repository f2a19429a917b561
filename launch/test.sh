#!/usr/bin/env bash
# The whole test suite on a fresh machine: environment, ruff, pyright, pytest. Arguments go to pytest.
# --parity, as the first one, also installs torch and real models, and runs what compares with them.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
setup requirements.txt requirements-test.txt
if [ "${1:-}" = --parity ]; then
  shift
  parity
fi
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
"$venv/bin/ruff" format --check .
"$venv/bin/ruff" check .
"$venv/bin/pyright" --pythonpath "$venv/bin/python"
"$venv/bin/python" -m pytest -n 2 --dist worksteal "$@"
