"""lm_eval's own command, with the model `lazyllm` registered.

    python -m lazyllm_ext.lab.evaluation.harness --model lazyllm --model_args pretrained=FOLDER …

Releases of lm_eval that look for entry points need no help: there `lm_eval` does the same.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec


def main() -> None:
    """Run lm_eval on this process's arguments. Exit status 2 where it is not installed."""
    if find_spec("lm_eval") is None:
        print(
            "lazyllm_ext.lab.evaluation.harness: expected lm_eval; install it with "
            "pip install 'lazyllm-ext[harness]'",
            file=sys.stderr,
        )
        sys.exit(2)
    from lm_eval.__main__ import cli_evaluate

    from . import model  # noqa: F401  (registers it)

    cli_evaluate()


if __name__ == "__main__":
    main()
