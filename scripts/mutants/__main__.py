"""Keeps the score of small mutations: how many of them the tests notice. Minutes; not in CI.

    python scripts/mutants --count 40 --seed 0     # a sample of the Python files below
    python scripts/mutants --kernels               # the list of kernel mutations

A mutation of Python is one place of one file: a comparison, an operator, a number, a call left out.
Tools that do this do not fit: mutmut wraps functions, which TorchScript cannot read, cosmic-ray
starts Python anew for each of thousands. Here a process that has imported torch and transformers
forks once for each mutation, and a sample is drawn by a seed. Kernel mutations are expressions that
one build holds side by side; a variable chooses.

What is known to survive, and why, stands in scripts/mutants/survivors.txt; another survivor ends
the run with 1.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

from kernels import kernel_survivors
from places import mutations
from running import PACKAGE, ROOT, Run, Tree, preload

# Files by prefix -> the tests that are to notice, those that notice most at the least cost first.
TESTS = {
    "decoder/": ["tests/decoder"],
    "state/": ["tests/decoder", "tests/hf/test_damaged_files.py", "tests/hf/test_saved.py"],
    "hf/cache/": [
        "tests/hf/test_forward.py", "tests/hf/test_apply.py", "tests/hf/test_cache.py",
        "tests/hf/test_report.py", "tests/hf/test_saved.py", "tests/hf/test_damaged_files.py",
        "tests/hf/test_ways.py", "tests/hf/test_refusals.py",
    ],
    "hf/api/": [
        "tests/hf/test_apply.py", "tests/hf/test_refusals.py", "tests/hf/test_forward.py",
        "tests/hf/test_per_call.py", "tests/hf/test_on_error.py", "tests/hf/test_cache.py",
        "tests/hf/test_ways.py", "tests/hf/test_saved.py", "tests/hf/test_payoff.py",
    ],
    "hf/models/": [
        "tests/hf/test_build.py", "tests/hf/test_families.py", "tests/hf/test_refusals.py",
        "tests/hf/test_apply.py", "tests/hf/test_around.py", "tests/hf/test_every_model.py",
    ],
}  # fmt: skip
# Fewer examples than the tests take by themselves, the same ones in each run.
FEW_EXAMPLES = {"LAZYLLM_HYPOTHESIS_EXAMPLES": "8"}


def python_survivors(count: int, seed: int, only: str) -> tuple[int, list[str]]:
    """How many mutations of a sample were killed, and those that were not."""
    everything = [one for one in mutations(ROOT / PACKAGE, list(TESTS)) if only in one.file]
    chosen = random.Random(seed).sample(everything, min(count, len(everything)))
    chosen.sort(key=lambda one: (one.file, one.begin))
    print(f"{len(chosen)} of {len(everything)} mutations, seed {seed}", flush=True)
    tree = Tree(ROOT / "build" / "mutants" / "python")
    runs: dict[str, Run] = {}
    survived = []
    for one in chosen:
        prefix = next(prefix for prefix in TESTS if one.file.startswith(prefix))
        if prefix not in runs:
            few = ["--hypothesis-seed=0", *TESTS[prefix]]
            runs[prefix] = Run(tree, [(few, FEW_EXAMPLES), (TESTS[prefix], {})])
        path = tree.package / one.file
        source = path.read_bytes()
        path.write_bytes(one.apply(source))
        began = time.monotonic()
        survives = runs[prefix].survives({})
        path.write_bytes(source)
        if survives:
            survived.append(one.said(source))
        word = "survived" if survives else "killed"
        print(f"{word:8} {time.monotonic() - began:5.1f} s  {one.said(source)}", flush=True)
    return len(chosen) - len(survived), survived


def known_survivors() -> dict[str, str]:
    """What is known to survive -> why: a line `file: before → after`, and below it `# why`."""
    lines = Path(__file__).with_name("survivors.txt").read_text().splitlines()
    pairs = [line for line in lines if line and not line.startswith("//")]
    return {what: why.removeprefix("# ") for what, why in zip(pairs[::2], pairs[1::2], strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=40, help="mutations of Python in the sample")
    parser.add_argument("--seed", type=int, default=0, help="which sample")
    parser.add_argument("--only", default="", help="files whose path contains this")
    parser.add_argument("--kernels", action="store_true", help="the kernels' list instead")
    options = parser.parse_args()
    preload()
    if options.kernels:
        killed, survived = kernel_survivors()
    else:
        killed, survived = python_survivors(options.count, options.seed, options.only)
    known = known_survivors()
    new = [what for what in survived if what not in known]
    print(f"{killed} killed, {len(survived) - len(new)} known to survive, {len(new)} survived")
    for what in survived:
        why = known.get(what, "not known: a test is missing, or nothing can tell the difference")
        print(f"  {what}\n    {why}")
    raise SystemExit(1 if new else 0)


if __name__ == "__main__":
    main()
