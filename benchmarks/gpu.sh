#!/usr/bin/env bash
# Everything that needs a GPU, in about ten minutes on one of 40 GB and more: builds, tests, sanitizers,
# operator benchmarks, and two models of 7 and 8 billion random bfloat16 weights beside transformers.
#
#   benchmarks/gpu.sh [FOLDER OF A VIRTUAL ENVIRONMENT WITH A CUDA BUILD OF TORCH]
#
# Needs nvcc and compute-sanitizer (both are in the CUDA toolkit) and a CUDA build of PyTorch; without an
# argument .venv is used, and made if it is not there. Results go to benchmarks/results/GPU-NAME-*.
set -euo pipefail
cd "$(dirname "$0")/.."

environment=${1:-.venv}
python=$environment/bin/python
step() { printf '\n== %s (%d s)\n' "$1" "$SECONDS"; }

step "build and install"
if [[ ! -x $python ]]; then
  python3 -m venv "$environment"
  "$python" -m pip install --quiet "${TORCH:-torch==2.13.0}"
fi
"$python" -c 'import torch, sys; sys.exit(0 if torch.cuda.is_available() else "this PyTorch sees no GPU")'
# For the GPU that is here: every further architecture takes a minute.
TORCH_CUDA_ARCH_LIST=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())')
export TORCH_CUDA_ARCH_LIST FORCE_CUDA=1
"$python" -m pip install --quiet '.[test]'
gpu=$("$python" -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-"))')

step "operators on the GPU against their references"
"$python" -m pytest -q -m gpu tests

step "compute-sanitizer on the small part of the table"
for tool in memcheck racecheck; do
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 1 \
    "$python" -m pytest -q -m 'gpu and smoke' tests/ops/test_ops.py \
    -k test_equals_reference
done

step "operators"
"$python" benchmarks/run.py operators --device cuda --name "$gpu-operators"

for shape in llama-2-7b llama-3.1-8b; do
  step "$shape"
  "$python" benchmarks/run.py scale --model "random:$shape" --device cuda --dtype bfloat16 \
    --lengths 4096,8192,16384,32768 --rounds 3 --new-tokens 33 --schedules dense,balanced,fast \
    --name "$gpu-$shape"
done
step "done"
