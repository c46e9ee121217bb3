"""apply and remove: one model instance runs LazyLLM, and then is as it was."""

from __future__ import annotations

import inspect
import os
from collections import deque
from collections.abc import Callable, MutableMapping
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lazyllm_ext.decoder import LazyDecoder
from lazyllm_ext.schedule import PruningSchedule

from .build import build_decoder, taken_from
from .cache import LazyCache, Plan
from .checks import check_mode, check_placement
from .families import family_of
from .forward import output, run, usable_cache
from .progress import tell_watcher
from .ranks import refuse_ranks
from .refuse import (
    refuse_drafts_of_turn,
    refuse_forward_arguments,
    refuse_generate_arguments,
    refuse_generation,
    refuse_turn,
    refuse_unknown_arguments,
)
from .report import Report
from .saved import load, model_fingerprint, save
from .versions import CACHE_NAME

# Decoders of single calls' schedules that are kept for further calls.
_LAST_PLANS = 16

# Attributes of the model that an instance of Lazy stands in for, by its own methods' names.
_REPLACED = (
    "forward",
    "generate",
    "_validate_model_kwargs",
    "_validate_generation_mode",
    "_update_model_kwargs_for_generation",
)


def apply(model: Any, schedule: Any, *, checked: bool = False) -> Lazy:
    """Let a transformers model drop unimportant tokens while it reads its prompt (LazyLLM).

    `model.generate` and `model(...)` are used as before. Only this instance changes, and
    `lazy.remove()`, or leaving a `with` block, puts everything back.

    Args:
        model: a causal language model of a supported family, loaded and in inference mode.
        schedule: a PruningSchedule, a dict, the path of a JSON file, or the name of a shipped
            schedule (`dense`, `balanced`, …).
        checked: raise RuntimeError as soon as an importance or a logit is NaN. Otherwise a NaN
            stays with the tokens that it belongs to. It costs a look at every boundary.

    Returns:
        What `report()`s on generations and `remove()`s itself.

    Raises:
        TypeError: `model` is not a transformers model.
        ValueError: a model, a schedule or a combination that is not supported, and why.
    """
    return Lazy(model, schedule, checked=checked)


def _one_cache(cache: Any, past_key_values: Any) -> Any:
    """The cache of a call, whichever name it was given by."""
    if cache is not None and past_key_values is not None:
        raise ValueError("cache: expected one of cache and past_key_values, got both")
    return past_key_values if cache is None else cache


class Lazy:
    """LazyLLM on one model; made by `apply`.

    Attributes:
        model: the model.
        schedule: the schedule that was asked for, and that of this model if it holds one.
        decoder: the decoder loop.
    """

    def __init__(self, model: Any, schedule: Any, *, checked: bool = False):
        family = family_of(model)
        check_placement(model)  # first: accelerate replaces forwards to move what is spread out
        for name in _REPLACED:
            owner = getattr(model.__dict__.get(name), "__self__", None)
            if isinstance(owner, Lazy):
                raise ValueError(
                    "model: expected a model without LazyLLM, got one to which it is applied "
                    "already; remove() that first"
                )
        if "forward" in model.__dict__:
            raise ValueError(
                f"model: expected the forward of {type(model).__name__}, got one that was replaced "
                "on the instance"
            )
        loaded = PruningSchedule.load(schedule)
        self.model = model
        self.schedule = loaded.for_model(getattr(model.config, "name_or_path", None))
        self._checked = checked
        # The decoder of each schedule: the one applied, and those of single calls, as long as a
        # cache is there that was begun with it, or it is one of the last ones.
        self._decoders: MutableMapping[Plan, LazyDecoder] = WeakKeyDictionary()
        self._last_plans: deque[Plan] = deque(maxlen=_LAST_PLANS)
        self._plan = self._add_plan(self.schedule)
        self.decoder = self._decoders[self._plan]
        self._parts = taken_from(model, family)
        self._report: Report | None = None
        # What the model did before, to be called, and what its own attributes were, to be restored.
        self._before: dict[str, Callable[..., Any]] = {
            name: getattr(model, name) for name in _REPLACED
        }
        self._own = {name: model.__dict__[name] for name in _REPLACED if name in model.__dict__}
        for name in _REPLACED:
            model.__dict__[name] = getattr(self, name)

    def _add_plan(self, schedule: PruningSchedule) -> Plan:
        decoder: LazyDecoder = build_decoder(self.model, schedule, checked=self._checked)
        boundary_layers = [layer for layer, number in enumerate(decoder.boundary_at) if number >= 0]
        decoder.on_layer = tell_watcher
        plan = Plan(decoder.spec, schedule, tuple(boundary_layers))
        self._decoders[plan] = decoder
        self._last_plans.append(plan)
        return plan

    def _plan_for(self, schedule: Any) -> Plan:
        """The plan of a call's own schedule; None: the one applied."""
        if schedule is None:
            return self._plan
        loaded = PruningSchedule.load(schedule)
        own = loaded.for_model(getattr(self.model.config, "name_or_path", None))
        for plan in list(self._decoders):
            if plan.schedule == own:
                return plan
        self._check_parts()
        return self._add_plan(own)

    def _cache_for(self, given: Any, schedule: Any) -> LazyCache:
        """The cache of a call: the one given, or a new one for its schedule."""
        plan = self._plan_for(schedule)
        cache = usable_cache(given, plan, self._decoders)
        if schedule is not None and cache.plan is not plan:
            raise ValueError(
                "lazy_schedule: expected the schedule that the cache was begun with, got another"
            )
        return cache

    def report(self) -> Report:
        """What the last finished `generate` did: tokens, times, memory.

        Raises:
            ValueError: none has finished. For single calls of the model, ask the cache that they
                return: `output.cache.report()` (`output.past_key_values` before transformers 5.24).
        """
        if self._report is None:
            raise ValueError("report: expected a finished generation, got none so far")
        return self._report

    def new_cache(self) -> LazyCache:
        """An empty cache, for single calls of the model as `past_key_values`."""
        return LazyCache(self._plan)

    def prefill(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        lazy_schedule: Any = None,
    ) -> LazyCache:
        """Read a document once, for many questions.

        Hand a copy to each: `generate(document_and_question, past_key_values=cache.copy())`. A
        question chooses its own tokens among all of the document's: what its last tokens did not
        find important waits, and comes back where it turns out to matter.

        Args:
            input_ids: [B, columns] int64, or
            inputs_embeds: [B, columns, hidden].
            attention_mask: [B, columns], 0 where there is no token.
            position_ids: [B, columns]; by default they count the tokens of each sequence.
            token_type_ids: zeros, as some tokenizers give them; without an effect.
            lazy_schedule: the schedule of this document and its questions, anything that `apply`
                takes; by default the one applied.

        Raises:
            ValueError: as a call of the model does.
        """
        out = self.forward(
            input_ids,
            attention_mask,
            position_ids,
            inputs_embeds=inputs_embeds,
            token_type_ids=token_type_ids,
            use_cache=True,
            logits_to_keep=1,
            return_dict=True,
            lazy_schedule=lazy_schedule,
        )
        cache: LazyCache = getattr(out, CACHE_NAME)
        return cache

    def save(self, cache: LazyCache, path: str | os.PathLike[str]) -> None:
        """Write a cache of this model to a safetensors file, for `load`.

        Raises:
            ValueError: a cache of another `apply`, an empty one, one that is not complete, or one
                that is divided over processes.
            OSError: the file cannot be written.
        """
        refuse_ranks(self.model, "save")
        usable = usable_cache(cache, self._plan, self._decoders)
        save(usable, model_fingerprint(self.model, self.decoder), path)

    def load(self, path: str | os.PathLike[str], *, lazy_schedule: Any = None) -> LazyCache:
        """A cache that `save` wrote, in this process or another one.

        Args:
            lazy_schedule: the one that it was read with; by default the one applied.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: another kind of file, or one of another model, other weights, another
                schedule or dtype.
        """
        refuse_ranks(self.model, "load")
        weight = self.model.get_input_embeddings().weight
        model = model_fingerprint(self.model, self.decoder)
        plan = self._plan_for(lazy_schedule)
        return load(path, plan, model, weight.dtype, weight.device)

    def remove(self) -> None:
        """Make the model what it was. Nothing happens where that is done already.

        Raises:
            RuntimeError: somebody replaced one of the replaced attributes since, and would lose it.
        """
        ours = {name: getattr(self, name) for name in _REPLACED}
        attributes = self.model.__dict__
        if not self._applied():
            return
        for name in _REPLACED:
            if attributes.get(name) != ours[name]:
                raise RuntimeError(
                    f"remove: model.{name} was replaced after lazyllm_ext.apply; undo that first"
                )
        for name in _REPLACED:
            del attributes[name]
        attributes.update(self._own)

    def _applied(self) -> bool:
        attributes = self.model.__dict__
        return any(attributes.get(name) == getattr(self, name) for name in _REPLACED)

    def __enter__(self) -> Lazy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    # The methods below stand in for the model's own ones of the same names.

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        *,
        past_key_values: Any = None,
        lazy_schedule: Any = None,
        **kwargs: Any,
    ) -> Any:
        """One call of the model, as transformers' causal language models take it.

        Two things are different. A token whose mask is 0 does not exist; `position_ids` that are
        not given count the tokens of each sequence. And `logits_to_keep` must be at least 1 for
        more than one new token, unless the schedule has no boundary. The cache may be given by
        transformers' newer or older name. `lazy_schedule` is one for this call and those that go on
        from its cache, anything that `apply` takes.
        """
        refuse_forward_arguments({"labels": labels, "inputs_embeds": inputs_embeds, **kwargs})
        refuse_unknown_arguments(kwargs)
        check_mode(self.model)
        config = self.model.config
        cache = self._cache_for(_one_cache(cache, past_key_values), lazy_schedule)
        if cache.state is None:
            self._check_parts()
        # Not in inference mode: a state made there could not be changed by a later call outside.
        with torch.inference_mode(False), torch.no_grad():
            logits = run(
                self._decoders[cache.plan],
                getattr(config, "max_position_embeddings", None),
                cache,
                input_ids,
                inputs_embeds,
                attention_mask,
                position_ids,
                logits_to_keep,
            )
        keeps_cache = config.use_cache if use_cache is None else use_cache
        as_dict = config.return_dict if return_dict is None else return_dict
        return output(logits, cache if keeps_cache else None, as_dict)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' generate, with a cache of ours and a report at the end.

        `lazy_schedule`: a schedule for this generation and the turns that go on from its cache,
        anything that `apply` takes; by default the one applied. `lazy_progress`: called with a
        `Progress` after every layer of the prompt; what it raises ends the generation.
        """
        signature = inspect.signature(type(self.model).generate)
        arguments = signature.bind(self.model, *args, **kwargs).arguments
        del arguments["self"]
        arguments.update(arguments.pop("kwargs", {}))
        refuse_generate_arguments(arguments)
        check_mode(self.model)
        given = _one_cache(arguments.pop("cache", None), arguments.pop("past_key_values", None))
        cache = self._cache_for(given, arguments.pop("lazy_schedule", None))
        progress = arguments.pop("lazy_progress", None)
        if progress is not None and not callable(progress):
            raise TypeError(f"lazy_progress: expected a function, got {type(progress).__name__}")
        if cache.columns:
            refuse_turn(arguments, cache.columns)
            refuse_drafts_of_turn(arguments, self.model.generation_config, cache.columns)
        cache.begin_generation(arguments.get("position_ids") is not None, progress)
        arguments[CACHE_NAME] = cache
        try:
            result = self._before["generate"](**arguments)
        finally:
            cache.end_generation()
        self._report = cache.report()
        return result

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        """Called by generate before it does anything."""
        refuse_forward_arguments(model_kwargs)
        self._before["_validate_model_kwargs"](model_kwargs)

    def _validate_generation_mode(
        self, generation_mode: Any, generation_config: Any, generation_mode_kwargs: Any
    ) -> None:
        """Called by generate before it does anything."""
        refuse_generation(generation_mode, generation_config)
        # All chunks of a prompt are one step: only the last token says which of them matter. The
        # decoder bounds what many rows need by itself.
        generation_config.prefill_chunk_size = None
        self._before["_validate_generation_mode"](
            generation_mode, generation_config, generation_mode_kwargs
        )

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Called by generate after every step."""
        cache = getattr(outputs, CACHE_NAME)
        # With drafts, generate adds to the mask before a step, too.
        if isinstance(cache, LazyCache) and "num_new_tokens" not in kwargs:
            cache.follow(model_kwargs)
        updated: dict[str, Any] = self._before["_update_model_kwargs_for_generation"](
            outputs, model_kwargs, *args, **kwargs
        )
        return updated

    def _check_parts(self) -> None:
        """Raises ValueError if a module that the decoder uses is no longer the model's."""
        for table, name, part in self._parts:
            if table.get(name) is not part:
                raise ValueError(
                    f"model: {name} was replaced, moved or cast after lazyllm_ext.apply; remove() "
                    "and apply again"
                )
