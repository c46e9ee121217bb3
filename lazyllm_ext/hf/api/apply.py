"""apply: a transformers model runs LazyLLM."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NoReturn

from lazyllm_ext.errors import NotSupportedError
from lazyllm_ext.hf.cache.report import Report, refused_report
from lazyllm_ext.hf.models.parts import language_of
from lazyllm_ext.schedule import PruningSchedule

from .fallback import Fallback
from .images import LazyWithImages
from .lazy import Lazy


def apply(
    model: Any,
    schedule: Any,
    *,
    min_tokens: int | str | None = None,
    checked: bool = False,
    on_error: str = "raise",
) -> Lazy:
    """Let a transformers model drop unimportant tokens while it reads its prompt (LazyLLM).

    `model.generate` and `model(...)` are used as before. Only this instance changes, and
    `lazy.remove()`, or leaving a `with` block, puts everything back.

    Args:
        model: a causal language model of a supported family, or a model that sees images around
            one, loaded and in inference mode. A PEFT model means its base model, which is the
            `model` of what is returned.
        schedule: a PruningSchedule, a dict, the path of a JSON file, or the name of a shipped
            schedule (`dense`, `balanced`, …).
        min_tokens: instead of the schedule's own: contexts shorter than this are not pruned. "auto"
            measures for some seconds (once per process for a model, schedule, dtype and number of
            threads) from where on pruning pays; `report().min_tokens` says what was found.
        checked: raise RuntimeError as soon as an importance or a logit is NaN. Otherwise a NaN
            stays with the tokens that it belongs to. It costs a look at every boundary.
        on_error: "raise", or "dense": where LazyLLM refuses the model or a call, warn once for each
            reason and let transformers compute it without LazyLLM. A call that goes on from a
            cache of LazyLLM's raises all the same, and so do arguments that are wrong for both.

    Returns:
        What `report()`s on generations and `remove()`s itself.

    Raises:
        TypeError: `model` is not a transformers model.
        NotSupportedError: a model that LazyLLM does not run, and why; a ValueError.
        ValueError: a schedule or a combination that is not right, and why.
    """
    fallback = Fallback(on_error)
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        model = model.get_base_model()
    try:
        kind = Lazy if language_of(model).whole else LazyWithImages
        return kind(model, schedule, fallback, checked=checked, min_tokens=min_tokens)
    except NotSupportedError as refusal:
        instead = Refused(model, schedule, min_tokens, refusal)
        fallback.accept(refusal)
        return instead


class Refused(Lazy):
    """Stands for a model that LazyLLM refused (`on_error="dense"`), and leaves it as it is."""

    def __init__(self, model: Any, schedule: Any, min_tokens: Any, refusal: NotSupportedError):
        self.model, self._refusal = model, str(refusal)
        loaded = PruningSchedule.load(schedule)
        self.schedule = loaded if min_tokens is None else replace(loaded, min_tokens=min_tokens)

    def report(self) -> Report:
        """That nothing is done, and why: `refused`."""
        return refused_report(self._refusal)

    def remove(self) -> None:
        """Nothing to undo."""

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises NotSupportedError, as all that only LazyLLM can do does."""
        raise NotSupportedError(self._refusal)

    new_cache = prefill = save = load = _refuse
    decoder = property(_refuse)
