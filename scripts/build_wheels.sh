#!/usr/bin/env bash
# A source distribution, and from it a wheel for each CPython, in dist/:
#
#   scripts/build_wheels.sh TORCH PYTHON...
#
# TORCH is what pip installs as PyTorch (Makefile), PYTHON a CPython 3.10 or newer. Every wheel must hold the
# same operator library, byte for byte: it knows no Python. A wheel with CUDA kernels comes out where nvcc
# is and TORCH is a CUDA build, or none (FORCE_CUDA=1 insists); it has the same name, so keep it apart.
set -euo pipefail
cd "$(dirname "$0")/.."
torch=$1
shift

# Only what an earlier run made: dist/ may hold other files.
mkdir -p dist
rm -rf build/wheels dist/lazyllm_ext-*.tar.gz dist/lazyllm_ext-*.whl
for python in "$@"; do
  venv="build/wheels/$(basename "$python")"
  "$python" -m venv "$venv"
  # shellcheck disable=SC2086 - TORCH may name an index as well
  "$venv/bin/pip" --disable-pip-version-check install --quiet $torch
  "$venv/bin/pip" --disable-pip-version-check install --quiet \
    "setuptools>=77" wheel "pybind11>=2.13" ninja build
  compgen -G "dist/lazyllm_ext-*.tar.gz" > /dev/null ||
    "$venv/bin/python" -m build --sdist --no-isolation --outdir dist
  PATH="$PWD/$venv/bin:$PATH" "$venv/bin/pip" --disable-pip-version-check wheel --quiet --no-deps \
    --no-build-isolation --wheel-dir dist dist/lazyllm_ext-*.tar.gz
done

libraries=$(for wheel in dist/lazyllm_ext-*.whl; do
  python3 -c 'import sys, zipfile; sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read("lazyllm_ext/_ops.so"))' \
    "$wheel" | sha256sum
done | sort -u | wc -l)
[ "$libraries" = 1 ] || { echo "build_wheels.sh: $libraries different operator libraries" >&2; exit 1; }
ls -l dist
