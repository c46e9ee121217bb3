"""The description of transformers models, and the decoder that is built from it.

- `families`: which models are supported, and where the parts of each are; `parts` fetches them.
- `checks`: what a model must be before any work, and still be later.
- `build`: the decoder, of a model's own `modules` or, for a file, of `exportable` ones.
- `loading`: a folder's model and tokenizer, or what in it is missing, foreign or damaged.
- `ranks`: tensor parallelism; `versions`: what differs between versions of transformers.
"""

from .build import build_decoder
from .families import SUPPORTED
from .loading import as_chat, check_tokens, load_model, load_tokenizer

__all__ = ["SUPPORTED", "as_chat", "build_decoder", "check_tokens", "load_model", "load_tokenizer"]
