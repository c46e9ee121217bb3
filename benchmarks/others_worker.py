"""One generation of one engine, for others.py: a request as JSON in, times as JSON out.

Runs in the engine's own environment, so it imports nothing of the project but for LazyLLM itself.
A short generation before the timed one warms up; weights are loaded before both.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Prompt, number of new tokens -> seconds from the call to each new token, and the tokens.
Generate = Callable[[list[int], int], tuple[list[float], list[int]]]

_WARM_UP = 64, 2  # tokens of the prompt, new ones


def with_transformers(request: dict[str, Any], kind: str) -> tuple[str, Generate]:
    """transformers with SDPA, or LazyLLM under the schedule `kind`."""
    import torch

    torch.set_num_threads(request["threads"])
    import lazyllm_ext
    from lazyllm_ext.lab.bench.model import Model

    model = Model(request["folder"], "float32")

    def generate(ids: list[int], new_tokens: int) -> tuple[list[float], list[int]]:
        run = model.generate(kind, torch.tensor(ids), new_tokens)
        return [run.ttft + run.per_token * i for i in range(new_tokens)], run.tokens

    if kind == "transformers":
        return f"transformers {version('transformers')}", generate
    return f"lazyllm-ext {lazyllm_ext.__version__}", generate


def with_llama(request: dict[str, Any], kind: str) -> tuple[str, Generate]:
    """llama.cpp, on the GGUF as shipped or on the same float32 weights as the others."""
    from llama_cpp import Llama

    home = Path(request["home"])
    path = home / "smollm2-q4_1.gguf"
    if kind == "llama-f32":
        path = _float32_gguf(home, path, Path(request["folder"]))
    llama = Llama(
        str(path),
        n_ctx=len(request["ids"]) + request["new_tokens"] + 1,
        n_threads=request["threads"],
        n_threads_batch=request["threads"],
        n_gpu_layers=0,
        verbose=False,
    )

    def generate(ids: list[int], new_tokens: int) -> tuple[list[float], list[int]]:
        llama.reset()  # else the tokens of the warm-up, a prefix, would not be computed again
        begin = time.perf_counter()
        arrived, tokens = [], []
        stream = llama.generate(ids, temp=0.0, repeat_penalty=1.0, reset=True)
        for token in itertools.islice(stream, new_tokens):
            arrived.append(time.perf_counter() - begin)
            tokens.append(int(token))
        return arrived, tokens

    return f"llama-cpp-python {version('llama-cpp-python')}", generate


def _float32_gguf(home: Path, source: Path, folder: Path) -> Path:
    """The GGUF file with its matrices in float32, unpacked as the transformers folder's are."""
    import gguf

    target = home / "smollm2-f32.gguf"
    if target.exists():
        return target
    reader = gguf.GGUFReader(source)
    architecture = reader.get_field("general.architecture").contents()
    part = target.with_suffix(".part")
    writer = gguf.GGUFWriter(part, architecture)
    for field in reader.fields.values():
        if field.name in ("general.architecture", "general.file_type") or (
            field.name.startswith("GGUF.")
        ):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(target)
    return target


def with_openvino(request: dict[str, Any], kind: str) -> tuple[str, Generate]:
    """OpenVINO GenAI on the same folder, converted once to float32 by optimum-intel."""
    import numpy
    import openvino
    import openvino_genai

    target = Path(request["home"]) / "openvino-model"
    if not (target / "openvino_tokenizer.xml").exists():
        _convert(request["folder"], target)
    pipeline = openvino_genai.LLMPipeline(
        str(target),
        "CPU",
        INFERENCE_NUM_THREADS=request["threads"],
        INFERENCE_PRECISION_HINT="f32",
        KV_CACHE_PRECISION="f32",
    )

    def generate(ids: list[int], new_tokens: int) -> tuple[list[float], list[int]]:
        arrived: list[float] = []

        class Stream(openvino_genai.StreamerBase):  # type: ignore[misc]
            def write(self, tokens: Any) -> Any:
                arrived.append(time.perf_counter() - begin)
                return openvino_genai.StreamingStatus.RUNNING

            def end(self) -> None:
                pass

        begin = time.perf_counter()
        tensor = openvino.Tensor(numpy.array([ids], dtype=numpy.int64))
        answer = pipeline.generate(
            openvino_genai.TokenizedInputs(
                tensor, openvino.Tensor(numpy.ones((1, len(ids)), dtype=numpy.int64))
            ),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            apply_chat_template=False,
            streamer=Stream(),
        )
        return arrived, [int(token) for token in answer.tokens[0]]

    return f"openvino-genai {version('openvino-genai')}", generate


def _convert(folder: str, target: Path) -> None:
    from optimum.exporters.openvino import main_export

    main_export(folder, str(target), task="text-generation-with-past", ov_config=None)


ENGINES = {
    "transformers": with_transformers,
    "dense": with_transformers,
    "balanced": with_transformers,
    "fast": with_transformers,
    "llama-f32": with_llama,
    "llama-q4": with_llama,
    "openvino": with_openvino,
}


def main(kind: str) -> None:
    """Warm up, measure, print."""
    request = json.load(sys.stdin)
    name, generate = ENGINES[kind](request, kind)
    short, few = _WARM_UP
    generate(request["ids"][:short], few)
    arrived, tokens = generate(request["ids"], request["new_tokens"])
    answer = {
        "version": name,
        "ttft_s": arrived[0],
        "decode_tokens_per_s": (len(arrived) - 1) / (arrived[-1] - arrived[0]),
        "tokens": tokens,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1])
