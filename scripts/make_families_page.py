"""Write docs/families.md: every causal language model of the installed transformers.

    python scripts/make_families_page.py

Each supported type is run beside its own transformers model first, each other one is refused.
"""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import fill

import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from hf.every_model import (  # noqa: E402
    EVERY_TYPE,
    HERE,
    VARIANTS,
    WITH_IMAGES,
    check_right,
    row,
    tiny_of,
)

from lazyllm_ext.hf.models.families import WRAPPERS  # noqa: E402

PAGE = """# Families

Every causal language model class of transformers {version}, by its `config.model_type`: {right} are
supported, {refused} are refused by name, and nothing is in between. Supported means that with
nothing dropped a tiny random model of the type computes what transformers computes (logits of
prefill, decoding and a left-padded batch, to rounding), and that rows of a pruned batch give what
they give alone; `tests/hf/test_every_model.py` holds that. `make families-page` writes this page.

Types are not names of products: Yi, SmolLM2, TinyLlama and the Llamas that DeepSeek distilled are
`llama`, Phi-4 is `phi3`, Pythia is `gpt_neox`, Qwen2.5 is `qwen2`.

Refused in every family are rotary embeddings whose frequencies depend on the length (dynamic,
longrope) and kinds of layers other than full and sliding-window attention. Export takes RMSNorm or
LayerNorm, plain linear layers and a gated MLP, and refuses the rest by name.

## Models that see images

`apply` takes these around any supported language model:
{seeing}.
Their own forward makes embeddings of the images and projects to logits, and the language model in
between runs LazyLLM; tokens of images are dropped and revived like others.
`tests/hf/test_images.py` holds each against itself. Refused by name are those with positions of
several axes (mrope: Qwen2-VL and later, GLM-4V), those whose images attend to themselves both ways
(Gemma 3, PaliGemma), and all others.

## Every type

| model_type | class | |
| --- | --- | --- |
{rows}
"""


def main() -> None:
    for kind in HERE:
        for fields in ({}, *VARIANTS.get(kind, {}).values()):
            check_right(tiny_of(kind, **fields))
    text = PAGE.format(
        version=transformers.__version__,
        right=len(HERE) + len(WITH_IMAGES),
        refused=len(EVERY_TYPE) - len(HERE) - len(WITH_IMAGES),
        seeing=fill(", ".join(f"`{kind}`" for kind in WRAPPERS), 100),
        rows="\n".join(map(row, sorted(EVERY_TYPE))),
    )
    (ROOT / "docs" / "families.md").write_text(text)


if __name__ == "__main__":
    main()
