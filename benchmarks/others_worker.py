"""One generation of one engine, for others.py: a request as JSON in, times as JSON out.

Runs in the engine's own environment, so it imports nothing of the project but for LazyLLM itself.
A short generation before the timed one warms up; weights are loaded before both.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

Generate = Callable[[list[int], int], Iterator[Any]]  # prompt, new tokens -> each as it arrives

_WARM_UP = 64, 2  # tokens of the prompt, new ones


def with_transformers(request: dict[str, Any], kind: str) -> tuple[str, Generate]:
    """transformers with SDPA, or LazyLLM under the schedule `kind`."""
    import torch

    torch.set_num_threads(request["threads"])
    from lazyllm_ext.bench.model import Model

    model = Model(request["folder"], "float32")

    def generate(ids: list[int], new_tokens: int) -> Iterator[Any]:
        run = model.generate(kind, torch.tensor(ids), new_tokens)
        # Its own clock saw the tokens arrive; `measure` takes these times as they are.
        yield run.ttft
        for _ in range(new_tokens - 1):
            yield run.per_token

    package = "transformers" if kind == "transformers" else "lazyllm-ext"
    return f"{package} {version(package)}", generate


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

    def generate(ids: list[int], new_tokens: int) -> Iterator[Any]:
        llama.reset()  # else the tokens of the warm-up, a prefix, would not be computed again
        tokens = llama.generate(ids, temp=0.0, repeat_penalty=1.0, reset=True)
        for _ in range(new_tokens):
            yield next(tokens)

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

    def generate(ids: list[int], new_tokens: int) -> Iterator[Any]:
        arrived: list[float] = []

        class Stream(openvino_genai.StreamerBase):  # type: ignore[misc]
            def write(self, tokens: Any) -> Any:
                arrived.append(time.perf_counter())
                return openvino_genai.StreamingStatus.RUNNING

            def end(self) -> None:
                pass

        begin = time.perf_counter()
        tensor = openvino.Tensor(numpy.array([ids], dtype=numpy.int64))
        pipeline.generate(
            openvino_genai.TokenizedInputs(
                tensor, openvino.Tensor(numpy.ones((1, len(ids)), dtype=numpy.int64))
            ),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            apply_chat_template=False,
            streamer=Stream(),
        )
        yield arrived[0] - begin
        for before, after in itertools.pairwise(arrived):
            yield after - before

    return f"openvino-genai {version('openvino-genai')}", generate


def _convert(folder: str, target: Path) -> None:
    from optimum.exporters.openvino import main_export

    main_export(folder, str(target), task="text-generation-with-past", ov_config=None)


ENGINES = {
    "transformers": (with_transformers, True),
    "dense": (with_transformers, True),
    "balanced": (with_transformers, True),
    "fast": (with_transformers, True),
    "llama-f32": (with_llama, False),
    "llama-q4": (with_llama, False),
    "openvino": (with_openvino, True),
}  # name -> how to load it, and whether it yields seconds instead of tokens


def measure(generate: Generate, timed: bool, ids: list[int], new_tokens: int) -> dict[str, Any]:
    """TTFT in seconds, and tokens per second after it."""
    if timed:
        waits = list(generate(ids, new_tokens))
        return {"ttft_s": waits[0], "decode_tokens_per_s": (len(waits) - 1) / sum(waits[1:])}
    begin = time.perf_counter()
    arrived, tokens = [], []
    for token in generate(ids, new_tokens):
        arrived.append(time.perf_counter())
        tokens.append(int(token))
    return {
        "ttft_s": arrived[0] - begin,
        "decode_tokens_per_s": (len(arrived) - 1) / (arrived[-1] - arrived[0]),
        "tokens": tokens,
    }


def main(kind: str) -> None:
    """Warm up, measure, print."""
    request = json.load(sys.stdin)
    load, timed = ENGINES[kind]
    name, generate = load(request, kind)
    short, few = _WARM_UP
    list(generate(request["ids"][:short], few))
    answer = measure(generate, timed, request["ids"], request["new_tokens"])
    print(json.dumps({"version": name, **answer}))


if __name__ == "__main__":
    main(sys.argv[1])
