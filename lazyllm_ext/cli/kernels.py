"""Which operators are registered, and for which devices."""

from __future__ import annotations

import torch


def operators() -> list[str]:
    """Names of the operators in torch.ops.lazyllm."""
    names = torch._C._dispatch_get_all_op_names()
    return sorted(name.removeprefix("lazyllm::") for name in names if name.startswith("lazyllm::"))


def has_kernel(operator: str, key: str) -> bool:
    """Whether an operator has a kernel under this dispatch key."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"lazyllm::{operator}", key)


def has_cuda_kernels() -> bool:
    """Whether the operators were built with CUDA."""
    return all(has_kernel(name, "CUDA") for name in operators())
