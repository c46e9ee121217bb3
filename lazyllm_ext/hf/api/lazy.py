"""One model instance runs LazyLLM, and then is as it was."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lazyllm_ext.decoder import LazyDecoder
from lazyllm_ext.errors import NotSupportedError
from lazyllm_ext.hf.cache.cache import LazyCache
from lazyllm_ext.hf.cache.forward import run, usable_cache
from lazyllm_ext.hf.cache.progress import Progress
from lazyllm_ext.hf.cache.report import Report, refused_report
from lazyllm_ext.hf.cache.saved import load, model_fingerprint, save
from lazyllm_ext.hf.models.checks import check_outputs, check_placement
from lazyllm_ext.hf.models.forwards import OwnForward, output_of
from lazyllm_ext.hf.models.parts import language_of
from lazyllm_ext.hf.models.ranks import refuse_ranks
from lazyllm_ext.hf.models.versions import CACHE_NAME

from .arguments import (
    Call,
    by_name,
    check_adapters,
    check_forward_arguments,
    check_forward_names,
    check_generate_arguments,
    check_generation,
    check_packing,
    without_nones,
)
from .fallback import Fallback, as_transformers, is_dense
from .plans import Plans
from .replaced import Replaced

# Attributes of the model that an instance of Lazy stands in for, by its own methods' names.
_REPLACED = (
    "forward",
    "generate",
    "init_continuous_batching",
    "_validate_model_kwargs",
    "_validate_generation_mode",
    "_update_model_kwargs_for_generation",
)


class Lazy:
    """LazyLLM on one model; made by `apply`.

    Attributes:
        model: the model.
        schedule: the schedule that was asked for, and that of this model if it holds one.
        decoder: the decoder loop.
    """

    def __init__(
        self,
        model: Any,
        schedule: Any,
        fallback: Fallback,
        *,
        checked: bool = False,
        min_tokens: int | str | None = None,
    ):
        self._fallback = fallback
        language = language_of(model)
        self._config = language.config
        check_placement(model)  # first: accelerate replaces forwards to move what is spread out
        _check_own(model)
        self.model = model
        # What stands in for the model's forward looks like it: families order arguments otherwise.
        self.forward = own = OwnForward(self._forward, model.forward)
        self._signature = own.__signature__
        self._plans = Plans(model, schedule, checked, min_tokens)
        self.schedule = self._plans.applied.schedule
        self._output = output_of(type(model if language.whole else language.base))
        self._report: Report | None = None
        self._replaced = Replaced(model, {name: getattr(self, name) for name in _REPLACED})
        self._plans.accept()

    @property
    def decoder(self) -> LazyDecoder:
        """The decoder loop of the schedule applied."""
        return self._plans.decoder(self._plans.applied)

    def report(self) -> Report:
        """What the last finished `generate` did: tokens, times, memory.

        Of one that transformers ran instead (`on_error="dense"`), `refused` says why.

        Raises:
            ValueError: none has finished. For single calls of the model, ask the cache that they
                return: `output.cache.report()` (`output.past_key_values` before transformers 5.24).
        """
        if self._report is None:
            raise ValueError("report: expected a finished generation, got none so far")
        return self._report

    def new_cache(self) -> LazyCache:
        """An empty cache, for single calls of the model as `past_key_values`."""
        return LazyCache(self._plans.applied)

    def prefill(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        lazy_schedule: Any = None,
        **kwargs: Any,
    ) -> LazyCache:
        """Read a document once, for many questions.

        Hand a copy to each: `generate(document_and_question, past_key_values=cache.copy())`. A
        question chooses its own tokens among all of the document's: what its last tokens did not
        find important waits, and comes back where it turns out to matter.

        Args:
            input_ids: [B, columns] int64; or `inputs_embeds`, [B, columns, hidden].
            attention_mask: [B, columns], 0 where there is no token.
            lazy_schedule: the schedule of this document and its questions, anything that `apply`
                takes; by default the one applied.
            kwargs: what else a call of the model takes: `position_ids`, [B, columns], which count
                the tokens of each sequence by default, `pixel_values` with an image, ….

        Raises ValueError as a call of the model does; `on_error` has no effect here.
        """
        if isinstance(attention_mask, Tensor) and kwargs.get("position_ids") is None:
            # A call of the model is refused where transformers would count padding.
            kwargs["position_ids"] = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        arguments = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "use_cache": True,
            "logits_to_keep": 1,
            "return_dict": True,
            **kwargs,
        }
        cache = LazyCache(self._plans.of(lazy_schedule))
        self._run(without_nones(arguments), cache)
        cache.remember(input_ids)
        return cache

    def save(self, cache: LazyCache, path: str | os.PathLike[str]) -> None:
        """Write a cache of this model to a safetensors file, for `load`.

        Raises:
            ValueError: a cache of another `apply`, an empty one, one that is not complete, or one
                that is divided over processes.
            OSError: the file cannot be written.
        """
        refuse_ranks(self.model, "save")
        usable = usable_cache(cache, self._plans.applied, self._plans)
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
        plan = self._plans.of(lazy_schedule)
        return load(path, plan, model, weight.dtype, weight.device)

    def remove(self) -> None:
        """Make the model what it was. Nothing happens where that is done already.

        Raises:
            RuntimeError: somebody replaced one of the replaced attributes since, and would lose it.
        """
        self._replaced.undo()

    def __enter__(self) -> Lazy:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    # The methods below stand in for the model's own ones of the same names (_forward: forward).

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        """One call of the model, with the arguments of its own forward, by place or by name.

        Two things are different. A token whose mask is 0 does not exist. And `logits_to_keep` must
        be at least 1 for more than one new token, unless the schedule has no boundary. The cache
        may be given by transformers' newer or older name. `lazy_schedule` is one for this call and
        those that go on from its cache, anything that `apply` takes.
        """
        return self._call(Call(without_nones(by_name(self._signature, args, kwargs))))

    def _call(self, call: Call) -> Any:
        """One call of the model, by LazyLLM or, where it refuses and that is wanted, without."""
        ours = isinstance(call.cache, LazyCache)
        dense = is_dense(self.model) or self._fallback.goes_on(call.cache)
        if ours or not dense:
            try:
                cache = self._cache_for(call)
                if not cache.generating:  # generate takes none
                    check_outputs(self.model, self._config, call.arguments)
                if cache.state is None:
                    check_adapters(self.model)
                check_packing(call, self._config)
                return self._run(call.arguments, cache)
            except NotSupportedError as refusal:
                self._fallback.accept(refusal, call.cache)
                if ours:  # of a generation that has not begun
                    call.cache.refused = str(refusal)
        result = self._replaced.before("forward")(**call.for_transformers())
        self._fallback.begin(result)
        return result

    def _cache_for(self, call: Call) -> LazyCache:
        """The cache that is given, or a new one for the call's schedule."""
        if call.two_caches:
            raise NotSupportedError("cache: expected one of cache and past_key_values, got both")
        plan = self._plans.of(call.schedule)
        cache = usable_cache(call.cache, plan, self._plans)
        if call.schedule is not None and cache.plan is not plan:
            raise ValueError(
                "lazy_schedule: expected the schedule that the cache was begun with, got another"
            )
        return cache

    def _run(self, arguments: Mapping[str, Any], cache: LazyCache) -> Any:
        """One call of the model by LazyLLM, with those arguments of forward that are given."""
        check_forward_arguments(arguments, self._signature)
        check_forward_names(arguments)
        logits = self._step(cache, arguments, arguments.get("logits_to_keep", 0))
        keeps_cache = arguments.get("use_cache", self._config.use_cache)
        as_dict = arguments.get("return_dict", self.model.config.return_dict)
        fields: dict[str, Any] = {"logits": logits, CACHE_NAME: cache if keeps_cache else None}
        result = self._output(**fields)
        return result if as_dict else result.to_tuple()

    def _step(
        self, cache: LazyCache, arguments: Mapping[str, Any], logits_to_keep: int | Tensor
    ) -> Tensor:
        """What the decoder makes of new tokens: logits [B, logits_to_keep, vocab]."""
        decoder = self._plans.decoder(cache.plan)
        longest = getattr(self._config, "max_position_embeddings", None)
        # Not in inference mode: a state made there could not be changed by a later call outside.
        with torch.inference_mode(False), torch.no_grad(), cache.owned():
            cache.check_usable()
            return run(decoder, longest, cache, arguments, logits_to_keep)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' generate, with a cache of ours and a report at the end.

        `lazy_schedule`: a schedule for this generation and the turns that go on from its cache,
        anything that `apply` takes; by default the one applied. `lazy_progress`: called with a
        `Progress` after every layer of the prompt; what it raises ends the generation.
        """
        signature = inspect.signature(type(self.model).generate)
        call = Call(by_name(signature, (self.model, *args), kwargs))
        del call.arguments["self"]
        progress = call.arguments.pop("lazy_progress", None)
        if progress is not None and not callable(progress):
            raise TypeError(f"lazy_progress: expected a function, got {type(progress).__name__}")
        cache = report = None
        if is_dense(self.model) and isinstance(call.cache, LazyCache):
            raise NotSupportedError(
                f"{CACHE_NAME}: expected no LazyCache within a generation of transformers"
            )
        if not is_dense(self.model):
            try:
                cache = self._cache_for(call)
                cache.may_fall_back = cache is not call.cache
                check_adapters(self.model)
                check_generate_arguments(call.arguments, self.model.generation_config, cache)
                return self._generate(call, cache, progress)
            except NotSupportedError as refusal:
                self._fallback.accept(refusal, call.cache if cache is None else cache)
                report = refused_report(str(refusal))
            finally:
                if cache is not None:
                    cache.may_fall_back = False
        with as_transformers(self.model):
            result = self._replaced.before("generate")(**call.for_transformers())
        self._report = report or self._report
        return result

    def _generate(
        self, call: Call, cache: LazyCache, progress: Callable[[Progress], object] | None
    ) -> Any:
        arguments = dict(call.arguments)
        # generate reads the last logits only, and asks for those, and for drafts', by itself.
        arguments.pop("logits_to_keep", None)
        with cache.owned():
            cache.begin_generation(arguments.get("position_ids") is not None, progress)
            try:
                result = self._replaced.before("generate")(**arguments, **{CACHE_NAME: cache})
            finally:
                cache.end_generation()
            refused = cache.refused
            self._report = cache.report() if refused is None else refused_report(refused)
        return result

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Where transformers' `generate_batch` and other continuous batching begin.

        Raises:
            NotSupportedError: always, but for `on_error="dense"`.
        """
        if not is_dense(self.model):
            self._fallback.accept(
                NotSupportedError(
                    "generate_batch: continuous batching is not supported, since its cache has "
                    "pages; expected generate with a batch"
                )
            )
        return self._replaced.before("init_continuous_batching")(*args, **kwargs)

    # transformers' generate calls these of the model's methods: before it does anything, …

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        if not is_dense(self.model):
            check_forward_arguments(model_kwargs, self._signature)
        self._replaced.before("_validate_model_kwargs")(model_kwargs)

    def _validate_generation_mode(
        self, generation_mode: Any, generation_config: Any, generation_mode_kwargs: Any
    ) -> None:
        if not is_dense(self.model):
            check_generation(generation_mode, generation_config)
            # All chunks of a prompt are one step: only the last token says which of them matter.
            # The decoder bounds what many rows need by itself.
            generation_config.prefill_chunk_size = None
            # "dynamic" is what none means; beside a cache transformers takes none by name.
            generation_config.cache_implementation = None
            # None is what is left out: there is a cache, so each step reads what is new alone.
            generation_config.use_cache = True
        self._replaced.before("_validate_generation_mode")(
            generation_mode, generation_config, generation_mode_kwargs
        )

    # … and after every step.

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        cache = getattr(outputs, CACHE_NAME)
        # With drafts, generate adds to the mask before a step, too.
        if isinstance(cache, LazyCache) and "num_new_tokens" not in kwargs:
            cache.follow(model_kwargs)
        update = self._replaced.before("_update_model_kwargs_for_generation")
        updated: dict[str, Any] = update(outputs, model_kwargs, *args, **kwargs)
        return updated


def _check_own(model: Any) -> None:
    """Raises ValueError for a model with LazyLLM, or with a forward that is not its class's."""
    for name in _REPLACED:
        if isinstance(getattr(model.__dict__.get(name), "__self__", None), Lazy):
            raise ValueError(
                "model: expected a model without LazyLLM, got one to which it is applied already; "
                "remove() that first"
            )
    if "forward" in model.__dict__:
        raise NotSupportedError(
            f"model: expected the forward of {type(model).__name__}, got one that was replaced "
            "on the instance"
        )
