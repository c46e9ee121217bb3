"""From a transformers model to a LazyDecoder around the model's own parameters."""

from __future__ import annotations

from typing import Any

from torch import nn

from lazyllm_ext.decoder import LazyDecoder, LazyLayer, RMSNorm, Rotary
from lazyllm_ext.schedule import PruningSchedule

from .checks import check_model
from .families import Family
from .modules import GatedMLP, OwnMLP, ScaledEmbedding, activation

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}


def build_decoder(
    model: Any, schedule: Any, *, export: bool = False, checked: bool = False
) -> LazyDecoder:
    """The decoder of a transformers causal language model; see `LazyDecoder.from_model`."""
    family = check_model(model)
    config, base = model.config, model.model
    layers = base.layers[: config.num_hidden_layers]
    windows = [family.window(layer.self_attn) for layer in layers]
    resolved = PruningSchedule.load(schedule).resolve(
        [window == 0 for window in windows], getattr(config, "name_or_path", None)
    )
    layer_types = base.rotary_emb.layer_types if family.rope_per_layer_type else [None]
    lazy_layers = []
    for layer, window in zip(layers, windows, strict=True):
        rope = layer_types.index(layer.self_attn.layer_type) if len(layer_types) > 1 else 0
        lazy_layers.append(_layer(layer, family, config, window, rope, export))
    return LazyDecoder(
        embed=_embedding(base.embed_tokens, family) if export else base.embed_tokens,
        layers=lazy_layers,
        norm=_norm(base.norm, family),
        lm_head=_linear(model.lm_head, "lm_head") if export else model.lm_head,
        ropes=[_rotary(base.rotary_emb, kind, layers[0].self_attn) for kind in layer_types],
        schedule=resolved,
        hidden_size=config.hidden_size,
        logit_softcap=getattr(config, "final_logit_softcapping", None) or 0.0,
        checked=checked,
    )


def parts_of(model: Any, family: Family) -> list[tuple[dict[str, Any], str, Any]]:
    """Everything that a decoder took from a model: (the owner's table, its name in it, the thing).

    A part that is no longer in its place has been replaced since the decoder was built.
    """
    base = model.model
    parts = [(model._modules, "lm_head"), (base._modules, "norm"), (base._modules, "embed_tokens")]
    parts.append((base.norm._parameters, "weight"))
    parts += [(base.rotary_emb._buffers, name) for name in base.rotary_emb._buffers]
    for layer in base.layers[: model.config.num_hidden_layers]:
        parts += [(layer._modules, name) for name in ("self_attn", "mlp", *family.norms)]
        attention = layer.self_attn._modules
        parts += [(attention, name) for name in family.attention_children]
        parts += [(layer.mlp._modules, name) for name in layer.mlp._modules]
        norms = [getattr(layer, name) for name in family.norms]
        if family.head_norms:
            norms += [layer.self_attn.q_norm, layer.self_attn.k_norm]
        parts += [(norm._parameters, "weight") for norm in norms]
    return [(table, name, table[name]) for table, name in parts]


def _layer(
    layer: Any, family: Family, config: Any, window: int, rope: int, export: bool
) -> LazyLayer:
    attention = layer.self_attn
    input_norm, mlp_norm, *out_norms = (_norm(getattr(layer, n), family) for n in family.norms)
    attention_out_norm, mlp_out_norm = out_norms or (None, None)
    projections = {name: getattr(attention, name) for name in _PROJECTIONS}
    mlp = layer.mlp
    if export:
        for name, projection in projections.items():
            _linear(projection, name)
        mlp = _mlp(mlp, family, config)
    elif type(mlp) is family.mlp and {name for name, _ in mlp.named_children()} == _MLP_PARTS:
        mlp = OwnMLP(mlp)
    return LazyLayer(
        input_norm=input_norm,
        mlp_norm=mlp_norm,
        attention_out_norm=attention_out_norm,
        mlp_out_norm=mlp_out_norm,
        q_norm=_norm(attention.q_norm, family) if family.head_norms else None,
        k_norm=_norm(attention.k_norm, family) if family.head_norms else None,
        mlp=mlp,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=attention.head_dim,
        scale=attention.scaling,
        window=window,
        rope=rope,
        **projections,
    )


def _norm(norm: Any, family: Family) -> RMSNorm:
    return RMSNorm(norm.weight, getattr(norm, family.norm_eps), family.norm_offset)


def _rotary(rotary: Any, layer_type: str | None, attention: Any) -> Rotary:
    prefix = f"{layer_type}_" if layer_type else ""
    inv_freq = getattr(rotary, f"{prefix}inv_freq")
    if 2 * inv_freq.numel() != attention.head_dim:
        raise ValueError(
            f"model: rotary embedding: expected all {attention.head_dim} dimensions of a head "
            f"rotated, got {2 * inv_freq.numel()}"
        )
    return Rotary(inv_freq, getattr(rotary, f"{prefix}attention_scaling"))


def _own(module: Any, expected: type[nn.Module], name: str, hint: str = "") -> Any:
    """The module, if it is exactly of the class that export can stand in for."""
    if type(module) is not expected:
        raise ValueError(
            f"export: {name}: expected {expected.__name__}, got {type(module).__name__}{hint}"
        )
    return module


def _linear(module: Any, name: str) -> nn.Linear:
    hint = "; merge adapters first, and use weights that are not quantized"
    linear: nn.Linear = _own(module, nn.Linear, name, hint)
    return linear


def _mlp(mlp: Any, family: Family, config: Any) -> GatedMLP:
    mlp = _own(mlp, family.mlp, "mlp")
    name = getattr(config, "hidden_activation", None) or config.hidden_act
    return GatedMLP(
        _linear(mlp.gate_proj, "gate_proj"),
        _linear(mlp.up_proj, "up_proj"),
        _linear(mlp.down_proj, "down_proj"),
        activation(name),
    )


def _embedding(embedding: Any, family: Family) -> nn.Module:
    embedding = _own(embedding, family.embedding, "embed_tokens")
    scale = getattr(embedding, "embed_scale", None)
    return embedding if scale is None else ScaledEmbedding(embedding.weight, scale)
