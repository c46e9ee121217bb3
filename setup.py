"""Builds the operator library lazyllm_ext/_ops.so and the Python module lazyllm_ext._C.

Everything else about the package stands in pyproject.toml. Environment variables: MAX_JOBS,
TORCH_CUDA_ARCH_LIST (default 8.0;9.0+PTX), FORCE_CUDA=1 (no nvcc is an error), SKIP_CUDA_BUILD=1,
DEBUG=1.
"""

import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, setup

# The build uses the torch of the environment it is for, and never downloads another. In pip's
# isolated builds the environment's packages are not on the path, but their folder is known.
for folder in (sysconfig.get_path("purelib"), *site.getsitepackages()):
    if folder not in sys.path:
        sys.path.append(folder)
NO_TORCH = (
    "lazyllm-ext: install PyTorch 2.10 or newer into this environment first "
    "(https://pytorch.org/get-started/locally/), then build again"
)
try:
    import torch
    from torch.utils import cpp_extension
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise SystemExit(NO_TORCH) from None
if torch.__version__ < (2, 10):
    raise SystemExit(f"{NO_TORCH}; there is {torch.__version__}")

ROOT = Path(__file__).resolve().parent
OPERATORS = "lazyllm_ext._ops"


def is_set(variable: str) -> bool:
    return os.environ.get(variable, "0").lower() not in ("", "0", "off", "false", "no")


def find_cuda() -> Path | None:
    """The CUDA toolkit, or None: nvcc is used where there is one, and never needed."""
    if is_set("SKIP_CUDA_BUILD"):
        return None
    on_path = shutil.which("nvcc")
    folders = (
        os.environ.get("CUDA_HOME"),
        on_path and Path(on_path).resolve().parents[1],
        "/usr/local/cuda",
    )
    # nvcc on PATH may be a script that starts another: then its folder is no toolkit.
    parts = ("bin/nvcc", "include/cuda_runtime.h")
    homes = [Path(folder) for folder in folders if folder]
    found = next((home for home in homes if all((home / part).exists() for part in parts)), None)
    problem = None
    if found is None:
        problem = "there is no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda"
    elif torch.version.cuda is not None:
        said = subprocess.check_output([found / "bin" / "nvcc", "--version"], text=True)
        release = re.search(r"release (\d+)", said)
        if release and release[1] != torch.version.cuda.partition(".")[0]:
            problem = f"nvcc is of CUDA {release[1]}, torch of CUDA {torch.version.cuda}"
    if problem and is_set("FORCE_CUDA"):
        raise SystemExit(f"lazyllm-ext: FORCE_CUDA is set, but {problem}")
    if problem:
        print(f"lazyllm-ext: building without CUDA kernels: {problem}")
    return None if problem else found


def operators(cuda: Path | None) -> Extension:
    """The plain shared library: no Python in it, so that C++ programs load it too."""
    sources = [p for p in sorted((ROOT / "csrc").rglob("*.cpp")) if p.name != "bindings.cpp"]
    optimize = ["-O0", "-g"] if is_set("DEBUG") else ["-O3", "-g0"]
    architectures = ""
    # Named again, as needed or not: a program that loads the library may not have them.
    link = ["-Wl,--no-as-needed", "-lc10", "-ltorch_cpu", "-ltorch"]
    # The same library whichever folders and build of torch it is made with: no paths of them in its
    # messages, no symbols but its own (beside some libtorch_cpu.so a linker exports a few more).
    link += [f"-Wl,--version-script={ROOT / 'csrc' / 'exports.map'}"]
    link += [] if is_set("DEBUG") else ["-Wl,-s"]
    relative = [
        f"-ffile-prefix-map={folder}/=" for folder in (ROOT, Path(torch.__file__).parents[1])
    ]
    macros = [("TORCH_TARGET_VERSION", "0x020a000000000000")]
    include = []
    if cuda is not None:
        # A CPU build of torch takes no interest in CUDA, but its extension builder can use it.
        cpp_extension.CUDA_HOME = str(cuda)
        architectures = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
        sources += sorted((ROOT / "csrc").rglob("*.cu"))
        macros.append(("LAZYLLM_WITH_CUDA", None))
        include.append(str(cuda / "include"))
        # The static runtime, its symbols kept private: the library loads where there is no CUDA,
        # and does not mix with the runtime that torch brings.
        link += [f"-L{cuda / folder}" for folder in ("lib64", "lib")]
        link += ["-lcudart_static", "-Wl,--exclude-libs,ALL", "-ldl", "-lrt", "-lpthread"]
    macros.append(("LAZYLLM_CUDA_ARCHITECTURES", f'"{architectures}"'))
    # Some CPythons ask for -fwrapv and others for this, which makes other code.
    flags = [*optimize, "-std=c++20", "-fvisibility=hidden", "-fno-strict-overflow"]
    return cpp_extension.CppExtension(
        OPERATORS,
        [str(path.relative_to(ROOT)) for path in sources],
        define_macros=macros,
        include_dirs=include,
        extra_compile_args={
            "cxx": [*flags, *relative, "-Wall"],
            "nvcc": [
                *optimize[:1],
                "-std=c++20",
                *(f"-Xcompiler={flag}" for flag in ("-fvisibility=hidden", *relative)),
            ],
        },
        extra_link_args=link,
        py_limited_api=True,  # not linked with Python
    )


def bindings() -> Extension:
    return Extension(
        "lazyllm_ext._C",
        ["csrc/bindings.cpp"],
        include_dirs=[pybind11.get_include()],
        extra_compile_args=["-std=c++20", "-fvisibility=hidden", "-g0"],
        extra_link_args=["-l:_ops.so", "-Wl,-rpath,$ORIGIN"],
        language="c++",
    )


class BuildOperators(cpp_extension.BuildExtension):
    """Names the operator library, which is no Python module, and links _C with it."""

    def get_ext_filename(self, name: str) -> str:
        if name.rpartition(".")[2] == OPERATORS.rpartition(".")[2]:
            return str(Path(*name.split("."))) + ".so"
        return super().get_ext_filename(name)

    def build_extension(self, extension: Extension) -> None:
        extension.define_macros.append(("LAZYLLM_VERSION", f'"{self.distribution.get_version()}"'))
        extension.library_dirs.append(str(Path(self.get_ext_fullpath(OPERATORS)).parent))
        # Some CPythons link with the folder of their own library, which nothing here needs.
        python = f"-Wl,-rpath,{sysconfig.get_config_var('LIBDIR')}"
        for linker in ("linker_so", "linker_so_cxx"):
            command = getattr(self.compiler, linker, [])
            command[:] = [part for part in command if part != python]
        super().build_extension(extension)


setup(
    ext_modules=[operators(find_cuda()), bindings()],
    cmdclass={"build_ext": BuildOperators},
)
