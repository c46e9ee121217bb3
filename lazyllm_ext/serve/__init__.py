"""An OpenAI-compatible server for one model: chat, completions, streaming, reused caches.

On its way a request meets `app`, the FastAPI application; `admission`, which says who is answered;
`parameters` and `prompts`, which read it; `queue`, where it waits; `engine`, which answers one at a
time on the model with `prefix_caches` and `detokenizer`; and `shapes`, which writes the response.
"""

from importlib.util import find_spec

from .engine import Completion, Engine, GenerationRequest
from .prefix_caches import PrefixCaches

__all__ = ["Completion", "Engine", "GenerationRequest", "PrefixCaches", "require_server"]


def require_server() -> None:
    """Raises ValueError, with what to install, where there is no FastAPI or uvicorn."""
    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"serve: expected {' and '.join(missing)}; "
            "install with pip install 'lazyllm-ext[serve]'"
        )
