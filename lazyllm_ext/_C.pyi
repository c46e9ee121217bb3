"""What the operators were built with, and which CPU instruction set they use."""

def version() -> str:
    """The project's version."""

def torch_version() -> str:
    """The LibTorch whose headers the operators were compiled with."""

def cuda_architectures() -> str:
    """The compiled CUDA architectures, such as '8.0;9.0+PTX'; '' without CUDA."""

def supported_cpu_capability() -> str:
    """'scalar', 'avx2', 'avx512', 'avx512_bf16' or 'amx': the best this processor can run."""

def cpu_capability() -> str:
    """The one in use. RuntimeError if LAZYLLM_CPU_CAPABILITY is wrong."""
