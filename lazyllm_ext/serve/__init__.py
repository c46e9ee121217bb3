"""An OpenAI-compatible server for one model: chat, completions, streaming, reused caches.

`engine` answers one request at a time on the model, `store` keeps finished conversations, `line` is
where requests wait, `parameters` and `shapes` are what goes in and out, and `app` is the FastAPI
application.
"""

from importlib.util import find_spec

from .engine import Answer, Asked, Engine
from .store import CacheStore

__all__ = ["Answer", "Asked", "CacheStore", "Engine", "require_server"]


def require_server() -> None:
    """Raises ValueError, with what to install, where there is no FastAPI or uvicorn."""
    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"serve: expected {' and '.join(missing)}; "
            "install with pip install 'lazyllm-ext[serve]'"
        )
