"""Finds and loads the compiled operators."""

from __future__ import annotations

from pathlib import Path

import torch

from . import fake, flops

_PACKAGE = Path(__file__).resolve().parent.parent


def library_path() -> Path:
    """The operator library in the package's folder.

    Raises:
        ImportError: there is none: the package was never built, or its source tree is imported.
    """
    path = _PACKAGE / "_ops.so"
    if path.exists():
        return path
    raise ImportError(
        f"lazyllm_ext: there is no compiled operator library in {_PACKAGE}; build it with "
        "`pip install .` in the project's folder, and if you did, start Python elsewhere: "
        "the project's folder hides the installed package"
    )


def load() -> None:
    """Load the operators into ``torch.ops.lazyllm``, and register their fakes and FLOP formulas.

    Raises:
        ImportError: the library is missing, or cannot be loaded into this PyTorch.
    """
    path = library_path()
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise ImportError(
            f"lazyllm_ext: the operators in {path} do not load into PyTorch {torch.__version__} "
            f"(they need 2.10 or newer): {error}"
        ) from error
    fake.register()
    flops.register()
