"""The description of transformers models, and the decoder that is built from it.

- `families`: which models are supported, and where the parts of each are; `parts` fetches them.
- `checks`: what a model must be before any work, and still be later; `forwards` whether a class's
  forward is its library's; `snapshot` whether a model is what it was.
- `build`: the decoder, of a model's own `modules` or, for a file, of `exportable` ones.
- `ranks`: tensor parallelism; `versions`: what differs between versions of transformers.
"""

from .build import build_decoder
from .families import SUPPORTED

__all__ = ["SUPPORTED", "build_decoder"]
