"""What a user calls: `apply`, and the `Lazy` that it returns.

- `apply`: the function, and what stands for a model that it refused.
- `lazy`: the methods that a user calls, and those that stand in for the model's own; `images` the
  same for a model that sees images. `replaced` puts them there and takes them away.
- `arguments`: a call taken apart, and the arguments of forward and generate that are refused.
- `fallback`: what happens to a refusal: it is raised, or transformers runs the model instead.
- `plans`: the schedules in use and their decoders; `payoff` measures min_tokens="auto".
- `model_defaults`: what a model's own files ask of generate, for programs that load a model.
"""

from .apply import apply
from .lazy import Lazy
from .model_defaults import ModelDefaults, sampling_of, settle_defaults

__all__ = ["Lazy", "ModelDefaults", "apply", "sampling_of", "settle_defaults"]
