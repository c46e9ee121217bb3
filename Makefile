# make demo: a real model reads a long document and answers a question about it, pruned and dense.
# make test: the whole test suite.
# make test-oldest: what depends on transformers, with the oldest version that is supported.
# make test-quantized: models whose weights torchao, optimum-quanto or bitsandbytes have quantized.
# make fuzz SEED=0 MINUTES=10: random sequences of what a user can do, beside transformers.
# make hf-tests TRANSFORMERS=path: transformers' own generation tests on models with LazyLLM.
# make sanitize: the operators' cases on kernels with AddressSanitizer and UBSan.
# make mutants: how many small mutations the tests notice.
# Each sets up everything it needs in .venv; a second run begins at once.

PYTHON ?= python3
# What pip installs as PyTorch, 2.10 or newer. On Linux the default is a CUDA build of several GB; for
# a smaller one name its index as well: make demo TORCH="torch==2.13.0 --index-url <URL>".
TORCH ?= torch==2.13.0
SCHEDULE ?= balanced
QUESTION ?= What was the length of the Sperm Whale's skeleton at Tranque?

VENV := .venv
OLDEST := $(VENV)/oldest
OLDEST_TRANSFORMERS := $(shell sed -n 's/.*"transformers>=\([0-9.]*\)".*/\1/p' pyproject.toml)
QUANTIZED := $(VENV)/quantized
QUANTIZERS := torchao optimum-quanto bitsandbytes
OLDEST_TESTS ?= tests/hf tests/serve --ignore tests/hf/fuzz --deselect tests/hf/test_real.py --deselect tests/serve/test_real.py
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
SOURCES := $(shell find csrc lazyllm_ext setup.py pyproject.toml README.md LICENSE -type f \
	-not -name '*.so' -not -name '*.pyc' | LC_ALL=C sort)
CPP_FILES = $(shell find csrc examples tests -name '*.h' -o -name '*.inc' -o -name '*.cpp' -o -name '*.cu' \
	-o -name '*.cuh')

.PHONY: demo test test-oldest test-quantized fuzz hf-tests sanitize mutants ctest lint format types cuda-check wheels families-page clean FORCE
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	@$(BIN)/lazyllm-ext generate --model demo --prompt-file lazyllm_ext/demo/document.txt \
		--question "$(QUESTION)" --schedule $(SCHEDULE) --compare

test: $(VENV)/installed ctest
	$(BIN)/python -I -m lazyllm_ext.demo
	LAZYLLM_GENERATE="$$(realpath -eq build/examples/generate)" $(BIN)/pytest $(PYTEST)

test-oldest: $(OLDEST)/installed
	$(OLDEST)/bin/python -I -m pytest $(OLDEST_TESTS)

# Imported first: the tests skip what is not there. Quanto compiles its kernels at their first use, with ninja.
test-quantized: $(QUANTIZED)/installed
	$(QUANTIZED)/bin/python -I -c "import bitsandbytes, optimum.quanto, torchao.quantization"
	PATH="$(CURDIR)/$(QUANTIZED)/bin:$(CURDIR)/$(BIN):$$PATH" $(QUANTIZED)/bin/python -I -m pytest tests/hf/test_around.py -k weights

SEED ?= 0
MINUTES ?= 10
fuzz: $(VENV)/installed
	LAZYLLM_FUZZ_SEED=$(SEED) LAZYLLM_FUZZ_MINUTES=$(MINUTES) $(BIN)/pytest -s tests/hf/fuzz

# A checkout of transformers of the installed version; FAMILIES: folders of its tests/models.
FAMILIES ?=
hf-tests: $(VENV)/installed
	$(BIN)/python scripts/transformers_tests.py "$(TRANSFORMERS)" --families "$(FAMILIES)"

sanitize: $(VENV)/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/sanitize.sh "$(CURDIR)/$(BIN)/python"

COUNT ?= 40
mutants: $(VENV)/installed
	$(BIN)/python scripts/mutants --count $(COUNT) --seed $(SEED)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python scripts/mutants --kernels

# The C++ library, its tests and what it is installed for, where there is CMake.
ctest: $(VENV)/torch
	@if PATH="$(CURDIR)/$(BIN):$$PATH" command -v cmake > /dev/null; then \
		export PATH="$(CURDIR)/$(BIN):$$PATH"; set -ex; \
		libtorch="$$(python -c 'import torch.utils; print(torch.utils.cmake_prefix_path)')"; \
		cmake -S . -B build/cpp -DCMAKE_BUILD_TYPE=Release -DLAZYLLM_CUDA=OFF \
			-DCMAKE_PREFIX_PATH="$$libtorch"; \
		cmake --build build/cpp --parallel; \
		ctest --test-dir build/cpp --output-on-failure; \
		cmake --install build/cpp --prefix build/prefix; \
		cmake -S examples/cpp -B build/examples -DCMAKE_PREFIX_PATH="$(CURDIR)/build/prefix;$$libtorch"; \
		cmake --build build/examples; \
	else echo "no cmake: the C++ tests are left out"; fi

lint: $(VENV)/dev-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP_FILES)

format: $(VENV)/dev-tools
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

types: $(VENV)/installed $(VENV)/dev-tools
	$(BIN)/mypy

# Asserts that the installed operators have CUDA kernels, and looks at what nvcc makes of them; no GPU.
cuda-check: $(VENV)/installed
	$(BIN)/python scripts/check_cuda_build.py --library \
		"$$($(BIN)/python -I -c 'from lazyllm_ext.ops.loading import library_path as p; print(p())')"

# A source distribution and a wheel for every CPython in PYTHONS, in dist/.
PYTHONS ?= $(PYTHON)
wheels:
	scripts/build_wheels.sh "$(TORCH)" $(PYTHONS)

# Runs every supported model type beside its own transformers model, and writes the page about it.
families-page: $(VENV)/installed
	$(BIN)/python scripts/make_families_page.py

clean:
	rm -rf $(VENV) build dist *.egg-info lazyllm_ext/*.so

# Set-up, step by step; a step is done again when what it depends on has changed.

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/torch: $(BIN)/python $(VENV)/torch-wanted
	@echo "installing $(TORCH)"
	@$(PIP) $(TORCH)
	@touch $@

$(VENV)/installed: $(VENV)/torch $(VENV)/sources-listed $(SOURCES)
	@echo "building and installing lazyllm-ext (minutes, the first time)"
	@find build/lib* -name '*.py' -delete 2> /dev/null || true  # what has moved since is not installed
	@$(PIP) '.[demo,test]'
	@touch $@

# Environments inside the first one, whose packages they use but for those that they have themselves.
$(OLDEST)/installed: PACKAGES = transformers==$(OLDEST_TRANSFORMERS)
$(QUANTIZED)/installed: PACKAGES = $(QUANTIZERS)
$(OLDEST)/installed $(QUANTIZED)/installed: $(VENV)/%/installed: $(VENV)/%-wanted $(VENV)/torch-wanted \
		| $(VENV)/installed
	@echo "installing $(PACKAGES)"
	@$(BIN)/python -m venv --clear --without-pip $(@D)
	@packages='import sysconfig; print(sysconfig.get_path("purelib"))'; \
		echo "import site; site.addsitedir('$$($(BIN)/python -c "$$packages")')" \
		> "$$($(@D)/bin/python -c "$$packages")/newest.pth"
	@$(@D)/bin/python -m pip --disable-pip-version-check install --quiet $(PACKAGES)
	@touch $@

$(VENV)/dev-tools: $(VENV)/installed
	@echo "installing ruff, mypy, clang-format"
	@$(PIP) '.[dev]'
	@touch $@

# Files that hold a value, written only when the value is another one.
$(VENV)/torch-wanted: VALUE = $(TORCH)
$(VENV)/sources-listed: VALUE = $(SOURCES)
$(VENV)/oldest-wanted: VALUE = $(OLDEST_TRANSFORMERS)
$(VENV)/quantized-wanted: VALUE = $(QUANTIZERS)
$(VENV)/torch-wanted $(VENV)/sources-listed $(VENV)/oldest-wanted $(VENV)/quantized-wanted: \
		$(BIN)/python FORCE
	@echo '$(VALUE)' | cmp -s - $@ || echo '$(VALUE)' > $@
