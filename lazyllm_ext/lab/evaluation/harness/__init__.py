"""The model `lazyllm` of lm-evaluation-harness: `LazyLM` in `.model`, a command in `.__main__`.

Importing this imports nothing of lm_eval, which is an extra (`pip install 'lazyllm-ext[harness]'`).
"""
