"""Checks the CUDA kernels where there is nvcc and need not be a GPU.

Every operator that is not for the CPU alone must have a CUDA kernel in the built library, which is
loaded beside whatever torch there is; no kernel may spill registers; and the kernels that live on
bandwidth must move 16 bytes an instruction. Prints a table and exits with 1 if something is amiss,
with 0 also without nvcc.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = ("80", "90")
OPERATORS = (
    "aux_gather", "aux_scatter_", "gated_activation", "kv_append_", "lazy_attention", "linear",
    "rms_norm", "rotate", "select_tokens", "token_importance",
)  # fmt: skip
CPU_ONLY = ("decoder_layer_",)  # made of the others, which a captured graph joins on a GPU

ASYNC_16 = r"cp\.async\.cg\.shared\.global\S* \[[^\]]*\], \[[^\]]*\], 16,"
# Kernel, by a part of its demangled name -> instructions that its PTX must hold.
REQUIRED = {
    "aux_gather_kernel<uint4>": (r"ld\.global\.nc\.v4", r"st\.global\.v4"),
    "aux_scatter_kernel<uint4>": (r"ld\.global\.nc\.v4", r"st\.global\.v4"),
    "kv_append_kernel<uint4>": (r"ld\.global\.nc\.v4", r"st\.global\.v4"),
    "linear_kernel<__nv_bfloat16, 8>": (r"ld\.global\S*v4",),
    "gated_activation_kernel<__nv_bfloat16, 8>": (r"ld\.global\S*v4", r"st\.global\.v4"),
    "rms_norm_kernel<__nv_bfloat16, 8>": (r"ld\.global\S*v4", r"st\.global\.v4"),
    "rotate_kernel<__nv_bfloat16, 8>": (r"ld\.global\S*v4", r"st\.global\.v4"),
    "token_importance_logits_kernel": (ASYNC_16, r"ld\.shared\.v4"),
    "lazy_attention_fma_kernel": (ASYNC_16, r"ld\.shared\.v4"),
    "lazy_attention_mma_kernel": (ASYNC_16, r"ldmatrix\.sync", r"mma\.sync\S*m16n8k16"),
}


@dataclass
class Kernel:
    """One kernel as compiled for one architecture."""

    name: str
    architecture: str
    registers: int
    spilled_bytes: int
    stack_bytes: int
    shared_bytes: int  # without the dynamic part
    ptx: str

    def faults(self) -> list[str]:
        """What is wrong with it."""
        found = [f"spills {self.spilled_bytes} bytes"] if self.spilled_bytes else []
        for part, patterns in REQUIRED.items():
            if part in self.name:
                found += [f"no {p}" for p in patterns if not re.search(p, self.ptx)]
        return found


def find_cuda() -> Path | None:
    """The CUDA toolkit: CUDA_HOME, the one of nvcc on PATH, or /usr/local/cuda."""
    nvcc = shutil.which("nvcc")
    on_path = Path(nvcc).resolve().parents[1] if nvcc else None
    homes = [home and Path(home) for home in (os.environ.get("CUDA_HOME"), on_path)]
    homes.append(Path("/usr/local/cuda"))
    # nvcc on PATH may be a script that starts another: then its folder is no toolkit.
    parts = ("bin/nvcc", "include/cuda_runtime.h")
    return next((h for h in homes if h and all((h / part).exists() for part in parts)), None)


def run(*command: str | Path, **environment: str) -> str:
    """Standard output and error of a command; its failure ends the check."""
    done = subprocess.run(
        [str(part) for part in command], cwd=ROOT, env={**os.environ, **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\n{command[0]} failed with exit status {done.returncode}")
    return done.stdout


def build_library(cuda: Path, folder: Path) -> Path:
    """The operator library with its CUDA kernels, built as pip builds it, into `folder`."""
    temporary, library = folder / "temporary", folder / "library"
    run(
        sys.executable, "setup.py", "--quiet", "build_ext",
        "--build-temp", temporary, "--build-lib", library, FORCE_CUDA="1", CUDA_HOME=str(cuda),
    )  # fmt: skip
    return library / "lazyllm_ext" / "_ops.so"


def registration_faults(library: Path) -> list[str]:
    """Operators of the library without a CUDA kernel, and operators that are not in OPERATORS."""
    torch.ops.load_library(str(library))
    names = torch._C._dispatch_get_all_op_names()
    registered = {name.partition("::")[2] for name in names if name.startswith("lazyllm::")}
    faults = [f"lazyllm::{name} is not registered" for name in set(OPERATORS) - registered]
    known = {*OPERATORS, *CPU_ONLY}
    faults += [f"lazyllm::{name} is not known to this check" for name in registered - known]
    for name in sorted(registered - {*CPU_ONLY}):
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"lazyllm::{name}", "CUDA"):
            faults.append(f"lazyllm::{name} has no CUDA kernel")
    return faults


def ptx_by_kernel(ptx: str) -> dict[str, str]:
    """Mangled name -> the kernel's part of a PTX file."""
    parts = re.split(r"^(?:\.weak |\.visible )?\.entry (\w+)\(", ptx, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def readable(names: list[str]) -> list[str]:
    """Demangled names, without namespaces and arguments."""
    tool = shutil.which("c++filt")
    if tool is None or not names:
        return names
    lines = run(tool, *names).splitlines()
    lines = [re.sub(r"\(anonymous namespace\)::", "", line) for line in lines]
    lines = [re.sub(r"\((?:bool|int)\)", "", line) for line in lines]
    return [re.sub(r"^void |lazyllm::cuda::|\(.*\)$", "", line) for line in lines]


def compile_kernels(cuda: Path, source: Path, architecture: str, folder: Path) -> list[Kernel]:
    """The kernels of one source file. PTX first, then the machine's code from it."""
    ptx = folder / f"{source.stem}.{architecture}.ptx"
    nvcc = cuda / "bin" / "nvcc"
    includes = [f"-I{path}" for path in cpp_extension.include_paths()]
    run(
        nvcc, "-ptx", "-O3", "-std=c++20", f"-arch=compute_{architecture}", *includes,
        *cpp_extension.COMMON_NVCC_FLAGS, "-DTORCH_TARGET_VERSION=0x020a000000000000",
        source, "-o", ptx,
    )  # fmt: skip
    report = run(
        nvcc, "-cubin", "-Xptxas=-v", f"-arch=sm_{architecture}", ptx,
        "-o", ptx.with_suffix(".cubin"),
    )  # fmt: skip
    text = ptx_by_kernel(ptx.read_text())
    reports = re.split(r"Compiling entry function '(\w+)' for '\w+'", report)
    names = reports[1::2]
    kernels = []
    for name, shown, said in zip(names, readable(names), reports[2::2], strict=True):

        def number(pattern: str, said: str = said) -> int:
            return sum(int(found) for found in re.findall(pattern, said))

        kernels.append(
            Kernel(
                shown, architecture, number(r"Used (\d+) registers"), number(r"(\d+) bytes spill"),
                number(r"(\d+) bytes stack frame"), number(r"(\d+) bytes smem"), text[name],
            )
        )  # fmt: skip
    return kernels


def main() -> int:
    """Runs all checks. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", type=Path, help="an operator library; built if not given")
    arguments = parser.parse_args()
    cuda = find_cuda()
    if cuda is None:
        print("there is no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda: nothing to check")
        return 0
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = arguments.library or build_library(cuda, folder)
        faults += registration_faults(library)
        print(f"{library}: {len(OPERATORS)} operators, torch {torch.__version__}")
        print(f"{'kernel':<58} {'arch':>5} {'regs':>5} {'spill':>6} {'stack':>6} {'shared':>7}")
        seen: set[str] = set()
        for source in sorted(ROOT.glob("csrc/**/*_cuda.cu")):
            for architecture in ARCHITECTURES:
                for kernel in compile_kernels(cuda, source, architecture, folder):
                    seen.add(kernel.name)
                    print(
                        f"{kernel.name:<58} {'sm_' + architecture:>5} {kernel.registers:>5} "
                        f"{kernel.spilled_bytes:>6} {kernel.stack_bytes:>6} "
                        f"{kernel.shared_bytes:>7}"
                    )
                    faults += [
                        f"{kernel.name} for sm_{architecture}: {fault}" for fault in kernel.faults()
                    ]
    faults += [
        f"no kernel is called {part}" for part in REQUIRED if not any(part in name for name in seen)
    ]
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
