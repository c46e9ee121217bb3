"""The cache of a generation, and what a call does with it.

- `cache`: LazyLLM's state as a transformers Cache; `plan` is what it knows of its decoder.
- `forward`: one call of a model, from `inputs`, which checks and packs what it is given, over a
  step of the decoder, to logits. `padding` knows which columns hold a token.
- `report`: what the latest prompt and the tokens after it took; `progress` while it runs.
- `saved`: a cache as a file.
"""

from .cache import LazyCache
from .progress import Progress
from .report import Report, SequenceReport

__all__ = ["LazyCache", "Progress", "Report", "SequenceReport"]
