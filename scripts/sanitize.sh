#!/usr/bin/env bash
# The operators' table of cases, on CPU kernels built with AddressSanitizer and UBSan: the first
# access outside of an allocation, and the first undefined operation, ends the run.
#
#   scripts/sanitize.sh PYTHON      # an environment in which lazyllm-ext is installed; needs cmake, g++
set -euo pipefail
cd "$(dirname "$0")/.."
python="$1"
build="$PWD/build/sanitize"
tests="$PWD/tests/ops"
preload="$(for name in libasan.so libubsan.so libstdc++.so.6; do g++ -print-file-name=$name; done | paste -sd:)"
export OMP_NUM_THREADS=2 ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1

cmake -S . -B "$build/cpp" -DLAZYLLM_CUDA=OFF -DBUILD_TESTING=OFF -DCMAKE_BUILD_TYPE=Sanitize \
  -DCMAKE_CXX_FLAGS_SANITIZE="-O0 -g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all -w" \
  -DCMAKE_PREFIX_PATH="$("$python" -c 'import torch.utils; print(torch.utils.cmake_prefix_path)')" > /dev/null
cmake --build "$build/cpp" --parallel "$(nproc)"

# The installed package with these operators in place of its own.
rm -rf "$build/package"
mkdir -p "$build/package"
cp -r "$("$python" -I -c 'import lazyllm_ext; print(*lazyllm_ext.__path__)')" "$build/package/"
cp "$build/cpp/liblazyllm_ops.so" "$build/package/lazyllm_ext/_ops.so"
export PYTHONPATH="$build/package"
cd "$build"  # not where the source tree would be imported

# That these operators are loaded, and that the sanitizer is there: it must find a write.
LD_PRELOAD="$preload" "$python" -c '
import sys, lazyllm_ext
loaded = open("/proc/self/maps").read()
assert sys.argv[1] in loaded, "the operators of another folder are loaded"' "$build/package/lazyllm_ext/_ops.so"
if LD_PRELOAD="$preload" "$python" -c '
import ctypes, torch
tensor = torch.empty(3, dtype=torch.int64)
ctypes.memset(tensor.data_ptr() + tensor.nbytes, 1, 8)' 2> /dev/null; then
  echo "scripts/sanitize.sh: expected AddressSanitizer to find a write behind a tensor, got none"
  exit 1
fi

# With pytest's own capture of file descriptors a report would be lost with the process.
run() { LD_PRELOAD="$preload" "$python" -m pytest -q --capture=sys -p no:cacheprovider "$@"; }
for capability in scalar ""; do  # "": the best of this processor
  echo "== CPU kernels: ${capability:-the best of this processor}"
  LAZYLLM_CPU_CAPABILITY=$capability run -m "smoke and not gpu" -k "equals_reference or alone" "$tests/test_ops.py"
done
run -m "not gpu" "$tests/test_errors.py" "$tests/test_decoder_layer.py"
