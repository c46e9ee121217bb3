"""From a transformers model to a LazyDecoder around the model's own parameters."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import nn

from lazyllm_ext.decoder import LazyDecoder, LazyLayer, RMSNorm, Rotary
from lazyllm_ext.decoder.modules import GatedMLP, PartOfProjection, is_untouched
from lazyllm_ext.errors import NotSupportedError
from lazyllm_ext.schedule import PruningSchedule

from .checks import check_model
from .families import Family
from .modules import CalledMLP, OwnMLP, OwnNorm, ScaledEmbedding, activation, operator_activation
from .parts import head_dim, parts_of
from .ranks import count_ranks, ranks_of, refuse_ranks

_MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}
_FUSED_MLP_PARTS = {"gate_up_proj", "down_proj", "activation_fn"}


def build_decoder(
    model: Any, schedule: Any, *, export: bool = False, checked: bool = False
) -> LazyDecoder:
    """The decoder of a transformers causal language model; see `LazyDecoder.from_model`."""
    language = check_model(model)
    if export and not language.whole:
        raise NotSupportedError(
            f"export: expected a language model by itself, got {type(model).__name__}"
        )
    if export:
        refuse_ranks(model, "export")
    ranks = count_ranks(model)
    family, config, parts = language.family, language.config, parts_of(language)
    windows = [family.window(attention) for attention in parts.attentions]
    resolved = PruningSchedule.load(schedule).resolve(
        [window == 0 for window in windows], getattr(model.config, "name_or_path", None)
    )
    if any(resolved.heads):
        refuse_ranks(model, "schedule: heads")
    # One rotary embedding for every type of layers, or for all; none at all is an empty list.
    kinds: list[str | None] = []
    if parts.rotary is not None:
        kinds = list(getattr(parts.rotary, "layer_types", [None]))
    ropes = [_rotary(parts.rotary, kind, parts.attentions[0], family) for kind in kinds]
    lazy_layers = []
    for number, attention in enumerate(parts.attentions):
        rope = len(kinds)
        if kinds and family.rotates(attention):
            rope = 0 if kinds == [None] else kinds.index(config.layer_types[number])
        window = windows[number]
        lazy_layers.append(
            _layer(parts.layers[number], attention, family, config, window, rope, ranks, export)
        )
    if any(layer.rope == len(kinds) for layer in lazy_layers):
        ropes.append(Rotary(torch.empty(0, device=model.device)))  # rotates nothing
    head: Any = nn.Identity()  # of a part: the model around projects, scales and caps
    if language.whole:
        head = _linear(model.lm_head, "lm_head") if export else model.lm_head
    decoder = LazyDecoder(
        embed=_embedding(parts.embed, family) if export else parts.embed,
        layers=lazy_layers,
        norm=_norm(parts.norm, family, export),
        lm_head=head,
        ropes=list(ropes),
        position_embed=parts.positions,
        schedule=resolved,
        hidden_size=config.hidden_size,
        embed_scale=family.embed_scale(config),
        logit_scale=family.logit_scale(config) if language.whole else 1.0,
        logit_softcap=(getattr(config, "final_logit_softcapping", None) or 0.0)
        if language.whole
        else 0.0,
        checked=checked,
    )
    decoder.over_ranks = ranks_of(model, resolved.over_heads)
    return decoder


def _layer(
    layer: Any,
    attention: Any,
    family: Family,
    config: Any,
    window: int,
    rope: int,
    ranks: int,
    export: bool,
) -> LazyLayer:
    norms = [_named_norm(layer, name, family, export) for name in family.norm_names(layer)]
    q_norm, k_norm = (
        _named_norm(attention, name, family, export) for name in family.head_norms or ("", "")
    )
    return LazyLayer(
        input_norm=norms[0] or nn.Identity(),
        mlp_norm=norms[1] or norms[0] or nn.Identity(),
        attention_out_norm=norms[2],
        mlp_out_norm=norms[3],
        q_norm=q_norm,
        k_norm=k_norm,
        norm_at=family.head_norms_of,
        mlp=_mlp(getattr(layer, family.mlp_name), family, config, export),
        num_heads=config.num_attention_heads // ranks,
        num_kv_heads=family.kv_heads(config) // ranks,
        head_dim=head_dim(attention),
        scale=family.scale(attention),
        window=window,
        softcap=family.attention_softcap(config) or 0.0,
        rope=rope,
        interleaved=family.interleaved,
        parallel=family.parallel(config),
        residual_scale=family.residual_scale(config),
        **_projections(attention, family, config, export),
    )


def _projections(attention: Any, family: Family, config: Any, export: bool) -> dict[str, nn.Module]:
    own = [getattr(attention, name) for name in family.projections]
    if export:
        for name, projection in zip(family.projections, own, strict=True):
            _linear(projection, name)
    if family.output_norm:
        norm = _norm(getattr(attention, family.output_norm), family, export)
        own[-1] = nn.Sequential(norm, own[-1])
    if family.fused_groups is not None:
        groups = family.fused_groups(config)
        query = config.num_attention_heads // groups * head_dim(attention)
        key = family.kv_heads(config) // groups * head_dim(attention)
        ends = [0, query, query + key, query + 2 * key]
        own[:1] = [PartOfProjection(own[0], groups, first, last) for first, last in pairwise(ends)]
    return dict(zip(("q_proj", "k_proj", "v_proj", "o_proj"), own, strict=True))


def _named_norm(owner: Any, name: str, family: Family, export: bool) -> nn.Module | None:
    norm = getattr(owner, name or "-", None)
    return None if norm is None else _norm(norm, family, export)


def _norm(norm: Any, family: Family, export: bool) -> nn.Module:
    if family.norm_eps:
        eps = getattr(norm, family.norm_eps)
        if not export:
            return OwnNorm(norm, eps, family.norm_offset)
        _check_untouched(norm, "norm")
        return RMSNorm(norm.weight, eps, family.norm_offset)
    if export:
        _own(norm, nn.LayerNorm, "norm")
    called: nn.Module = norm
    return called


def _rotary(rotary: Any, layer_type: str | None, attention: Any, family: Family) -> Rotary:
    prefix = f"{layer_type}_" if layer_type else ""
    inv_freq = getattr(rotary, f"{prefix}inv_freq")
    rotated, whole = 2 * inv_freq.numel(), head_dim(attention)
    if rotated > whole or (rotated < whole and not family.partial_rotary):
        raise NotSupportedError(
            f"model: rotary embedding: expected all {whole} dimensions of a head rotated, "
            f"got {rotated}"
        )
    return Rotary(inv_freq, getattr(rotary, f"{prefix}attention_scaling"))


def _own(module: Any, expected: type[nn.Module], name: str, hint: str = "") -> Any:
    """The module, if it is exactly of the class that export can stand in for."""
    if type(module) is not expected:
        raise ValueError(
            f"export: {name}: expected {expected.__name__}, got {type(module).__name__}{hint}"
        )
    _check_untouched(module, name)
    return module


def _check_untouched(module: nn.Module, name: str) -> None:
    if not is_untouched(module):
        raise ValueError(f"export: {name}: expected no hook and the forward of its class")


def _linear(module: Any, name: str) -> nn.Linear:
    hint = "; merge adapters first, and use weights that are not quantized"
    linear: nn.Linear = _own(module, nn.Linear, name, hint)
    return linear


def _mlp(mlp: Any, family: Family, config: Any, export: bool) -> nn.Module:
    parts = {name for name, _ in mlp.named_children()} if type(mlp) is family.mlp else set()
    if not export:
        return OwnMLP(mlp) if parts == _MLP_PARTS else CalledMLP(mlp)
    gate: nn.Module
    up: nn.Module
    if parts == _MLP_PARTS:
        gate, up = _linear(mlp.gate_proj, "gate_proj"), _linear(mlp.up_proj, "up_proj")
        called = mlp.act_fn
    elif parts == _FUSED_MLP_PARTS:
        both = _linear(mlp.gate_up_proj, "gate_up_proj")
        half = both.out_features // 2
        gate, up = PartOfProjection(both, 1, 0, half), PartOfProjection(both, 1, half, 2 * half)
        called = mlp.activation_fn
    else:
        raise ValueError(
            f"export: mlp: expected a gated MLP ({', '.join(sorted(_MLP_PARTS))}) of the family's "
            f"own class, got {type(mlp).__name__}"
        )
    _check_untouched(mlp, "mlp")
    _check_untouched(called, "activation")
    down = _linear(mlp.down_proj, "down_proj")
    return GatedMLP(gate, up, down, activation(called), operator_activation(called))


def _embedding(embedding: Any, family: Family) -> nn.Module:
    embedding = _own(embedding, family.embedding, "embed_tokens")
    scale = getattr(embedding, "embed_scale", None)
    return embedding if scale is None else ScaledEmbedding(embedding.weight, scale)
