"""The console script: it stands outside of the package, whose import takes seconds."""

from __future__ import annotations

import os
import signal
from typing import Any, NoReturn


def main() -> None:
    """Run the command line; an interrupt while PyTorch is imported ends it in one sentence."""
    before = signal.signal(signal.SIGINT, _interrupted)
    from lazyllm_ext.cli import main as run

    signal.signal(signal.SIGINT, before)
    run()


def _interrupted(*signal: Any) -> NoReturn:
    """Nothing is begun yet; an exception might be swallowed by a library that is half imported."""
    os.write(2, b"lazyllm-ext: interrupted\n")
    os._exit(130)
