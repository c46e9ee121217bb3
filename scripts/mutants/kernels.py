"""The mutations of kernels: one build holds all that kernels.json lists."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from running import ROOT, Run, Tree

TREE = ROOT / "build" / "mutants"
# Folders of csrc -> which of the operators' tests are to notice.
OPERATORS = {
    "select": "select_tokens", "kv_append": "kv_append", "aux_cache": "aux",
    "attention": "lazy_attention", "importance": "token_importance", "norm": "rms_norm",
    "rotary": "rotate", "gate": "gated_activation", "linear": "linear",
    "cpu": "lazy_attention or token_importance", "layer": "decoder_layer",
}  # fmt: skip


def rounds_of(folder: str) -> list[tuple[list[str], dict[str, str]]]:
    """The small part of the tests of a folder's operator, then all of them."""
    if folder == "layer":
        return [(["tests/ops/test_decoder_layer.py"], {})]
    files = ["tests/ops/test_ops.py", "tests/ops/test_errors.py", "tests/ops/test_memory.py"]
    own = f"{OPERATORS[folder]} or behind"  # test_memory.py sees writes behind a tensor
    return [(["-m", f"{marks}not gpu", "-k", own, *files], {}) for marks in ("smoke and ", "")]


_SWITCH = """#pragma once
#include <cstdlib>
inline int lazyllm_mutant() {
  static const char* chosen = std::getenv("LAZYLLM_MUTANT");
  static const int number = chosen == nullptr ? 0 : std::atoi(chosen);
  return number;
}
"""


def mutated_kernels(listed: list[dict[str, str]]) -> dict[str, str]:
    """Each file of csrc that has mutations, with all of them in it, by its name."""
    texts = {one["file"]: (ROOT / "csrc" / one["file"]).read_text() for one in listed}
    for file, text in texts.items():
        places = []
        for number, one in enumerate(listed, 1):
            if one["file"] != file:
                continue
            if text.count(one["line"]) != 1 or one["line"].count(one["old"]) != 1:
                raise SystemExit(f"{file}: not there once: {one['line']} / {one['old']}")
            places.append((text.index(one["line"]) + one["line"].index(one["old"]), number, one))
        for begin, number, one in sorted(places, key=lambda place: place[0], reverse=True):
            chosen = f"(lazyllm_mutant() == {number} ? ({one['new']}) : ({one['old']}))"
            text = text[:begin] + chosen + text[begin + len(one["old"]) :]
        texts[file] = text
    return texts


def built_kernels(listed: list[dict[str, str]]) -> Path:
    """One library with all kernel mutations, chosen by LAZYLLM_MUTANT; 0 is none."""
    source = TREE / "source"
    mutated = mutated_kernels(listed)
    files = [ROOT / "CMakeLists.txt", ROOT / "pyproject.toml"]
    files += [path for folder in ("csrc", "cmake") for path in (ROOT / folder).rglob("*.*")]
    for path in files:
        to, name = source / path.relative_to(ROOT), str(path.relative_to(ROOT))
        text = mutated.get(name.removeprefix("csrc/"), path.read_text())
        if not to.exists() or to.read_text() != text:  # what is as it was is not compiled again
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_text(text)
    (TREE / "switch.h").write_text(_SWITCH)
    import torch.utils

    configure = [
        "cmake", "-S", str(source), "-B", str(TREE / "cpp"), "-DCMAKE_BUILD_TYPE=Mutants",
        "-DLAZYLLM_CUDA=OFF", "-DBUILD_TESTING=OFF",
        f"-DCMAKE_CXX_FLAGS=-O0 -w -include {TREE / 'switch.h'}",
        f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}",
    ]  # fmt: skip
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    build = ["cmake", "--build", str(TREE / "cpp"), "--parallel", str(os.cpu_count())]
    subprocess.run(build, check=True)
    return TREE / "cpp" / "liblazyllm_ops.so"


def kernel_survivors() -> tuple[int, list[str]]:
    """How many mutations were killed, and those that were not."""
    listed = json.loads(Path(__file__).with_name("kernels.json").read_text())
    library = built_kernels(listed)
    tree = Tree(TREE / "kernels")
    shutil.copy(library, tree.package / "_ops.so")
    runs: dict[str, Run] = {}
    survived = []
    for number, one in enumerate(listed, 1):
        folder = one["file"].partition("/")[0]
        if folder not in runs:
            runs[folder] = Run(tree, rounds_of(folder))
        said = f"{one['file']}: {one['old']} → {one['new']}"
        if runs[folder].survives({"LAZYLLM_MUTANT": str(number)}):
            survived.append(said)
        print("survived" if said in survived else "killed  ", said, flush=True)
    return len(listed) - len(survived), survived
