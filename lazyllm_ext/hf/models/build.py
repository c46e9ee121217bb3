"""From a transformers model to a LazyDecoder around the model's own parameters."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from lazyllm_ext.decoder import LazyDecoder, LazyLayer, Rotary
from lazyllm_ext.decoder.modules import PartOfProjection, or_identity
from lazyllm_ext.errors import refusal
from lazyllm_ext.schedule import PruningSchedule

from .checks import check_model
from .exportable import ExportableModules
from .families import Family
from .modules import OwnModules
from .parts import Language, Parts, head_dim, parts_of
from .ranks import count_ranks, ranks_of, refuse_ranks


def build_decoder(
    model: Any, schedule: Any, *, export: bool = False, checked: bool = False
) -> LazyDecoder:
    """The decoder of a transformers causal language model; see `LazyDecoder.from_model`."""
    language = check_model(model)
    if export and not language.whole:
        raise refusal("export", "a language model by itself", type(model).__name__)
    if export:
        refuse_ranks(model, "export")
    family, config, parts = language.family, language.config, parts_of(language)
    resolved = PruningSchedule.load(schedule).resolve(
        [family.window(attention) == 0 for attention in parts.attentions],
        getattr(model.config, "name_or_path", None),
    )
    if any(resolved.heads):
        refuse_ranks(model, "schedule: heads")
    modules = ExportableModules(family) if export else OwnModules(family)
    ropes, rope_of = _ropes(language, parts, model.device)
    builder = _Builder(family, config, count_ranks(model), modules)
    whole = language.whole  # a part's hidden states are projected, scaled and capped around it
    decoder = LazyDecoder(
        layers=[
            builder.layer(layer, attention, rope)
            for layer, attention, rope in zip(parts.layers, parts.attentions, rope_of, strict=True)
        ],
        embed=modules.embedding(parts.embed),
        norm=modules.norm(parts.norm),
        lm_head=modules.linear(model.lm_head, "lm_head") if whole else nn.Identity(),
        ropes=ropes,
        position_embed=parts.positions,
        schedule=resolved,
        hidden_size=config.hidden_size,
        embed_scale=family.embed_scale(language.base),
        logit_scale=family.logit_scale(model) if whole else 1.0,
        logit_softcap=(whole and getattr(config, "final_logit_softcapping", None)) or 0.0,
        checked=checked,
    )
    decoder.over_ranks = ranks_of(model, resolved.over_heads)
    return decoder


def _ropes(
    language: Language, parts: Parts, device: torch.device
) -> tuple[list[nn.Module], list[int]]:
    """The rotary embeddings, and the number of each layer's."""
    # One for every type of layers, or for all; none at all is an empty list.
    kinds: list[str | None] = []
    if parts.rotary is not None:
        kinds = list(getattr(parts.rotary, "layer_types", [None]))
    family, attentions = language.family, parts.attentions
    ropes: list[nn.Module] = [_rotary(parts.rotary, kind, attentions[0], family) for kind in kinds]
    rope_of = []
    for number, attention in enumerate(attentions):
        if not kinds or not family.rotates(attention):
            rope_of.append(len(kinds))
        else:
            kind = None if kinds == [None] else language.config.layer_types[number]
            rope_of.append(kinds.index(kind))
    if len(kinds) in rope_of:
        ropes.append(Rotary(torch.empty(0, device=device)))  # rotates nothing
    return ropes, rope_of


def _rotary(rotary: Any, layer_type: str | None, attention: Any, family: Family) -> Rotary:
    prefix = f"{layer_type}_" if layer_type else ""
    inv_freq = getattr(rotary, f"{prefix}inv_freq")
    rotated, whole = 2 * inv_freq.numel(), head_dim(attention)
    if rotated > whole or (rotated < whole and not family.partial_rotary):
        raise refusal(
            "model: rotary embedding", f"all {whole} dimensions of a head rotated", rotated
        )
    return Rotary(inv_freq, getattr(rotary, f"{prefix}attention_scaling"))


@dataclass(frozen=True)
class _Builder:
    """Makes the layers of a decoder."""

    family: Family
    config: Any
    ranks: int
    modules: OwnModules

    def layer(self, layer: Any, attention: Any, rope: int) -> LazyLayer:
        """The decoder's layer in the place of a model's own one."""
        family, config, ranks = self.family, self.config, self.ranks
        norms = [self._norm(layer, name) for name in family.norm_names(layer)]
        q_norm, k_norm = (self._norm(attention, name) for name in family.head_norms or ("", ""))
        return LazyLayer(
            input_norm=or_identity(norms[0]),
            mlp_norm=or_identity(norms[0] if norms[1] is None else norms[1]),
            attention_out_norm=norms[2],
            mlp_out_norm=norms[3],
            q_norm=q_norm,
            k_norm=k_norm,
            norm_at=family.head_norms_of,
            mlp=self.modules.mlp(getattr(layer, family.mlp_name)),
            num_heads=config.num_attention_heads // ranks,
            num_kv_heads=family.kv_heads(config) // ranks,
            head_dim=head_dim(attention),
            scale=family.scale(attention),
            window=family.window(attention),
            softcap=family.attention_softcap(attention) or 0.0,
            rope=rope,
            interleaved=family.interleaved,
            parallel=family.parallel(layer),
            residual_scale=family.residual_scale(layer),
            **self._projections(attention),
        )

    def _projections(self, attention: Any) -> dict[str, nn.Module]:
        family, config = self.family, self.config
        self._check_heads(attention)
        own = [self.modules.linear(getattr(attention, name), name) for name in family.projections]
        if family.output_norm:
            norm = self.modules.norm(getattr(attention, family.output_norm))
            own[-1] = nn.Sequential(norm, own[-1])
        if family.fused_groups is not None:
            groups = family.fused_groups(config)
            query = config.num_attention_heads // groups * head_dim(attention)
            key = family.kv_heads(config) // groups * head_dim(attention)
            ends = [0, query, query + key, query + 2 * key]
            own[:1] = [PartOfProjection(own[0], groups, *span) for span in pairwise(ends)]
        return dict(zip(("q_proj", "k_proj", "v_proj", "o_proj"), own, strict=True))

    def _check_heads(self, attention: Any) -> None:
        """Raises NotSupportedError if the configuration counts other heads than there are."""
        if self.ranks > 1:  # a projection may name the outputs of all processes
            return
        family, size = self.family, head_dim(attention)
        query, key = self.config.num_attention_heads * size, family.kv_heads(self.config) * size
        of_each = [query, key, key] if family.fused_groups is None else [query + 2 * key]
        for name, expected in zip(family.projections, of_each, strict=False):
            module = getattr(attention, name)
            got = getattr(module, "out_features", getattr(module, "nf", expected))
            if got != expected:
                raise refusal(
                    f"model: {name}",
                    f"{expected} outputs, as the configuration and head_dim={size} say",
                    got,
                )

    def _norm(self, owner: Any, name: str) -> nn.Module | None:
        norm = getattr(owner, name or "-", None)
        return None if norm is None else self.modules.norm(norm)
