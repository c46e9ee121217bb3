"""`lazyllm-ext generate`: what it prints, and what it refuses."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lazyllm_ext.cli.generation import TimedStreamer
from lazyllm_ext.hf import SUPPORTED

from .conftest import CONTEXT, Ran

Run = Callable[..., Ran]

PROMPT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 2
PRUNED = {"boundaries": [{"layer": 1, "keep": 0.5}, {"layer": 2, "keep": 0.25}], "window": 4}


@pytest.fixture
def schedule(tmp_path: Path) -> Path:
    """A schedule file that drops tokens in two layers."""
    file = tmp_path / "pruned.json"
    file.write_text(json.dumps(PRUNED), encoding="utf-8")
    return file


def as_json(ran: Ran) -> dict[str, Any]:
    """The one JSON object on standard output."""
    assert ran.status == 0, ran.stderr
    assert ran.stdout.count("\n") == 1
    data = json.loads(ran.stdout)
    assert isinstance(data, dict)
    return data


def transformers_answer(folder: Path, text: str, new_tokens: int) -> str:
    """What the dense model answers, without LazyLLM anywhere."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    ids = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
    return tokenizer.decode(ids[0, inputs["input_ids"].size(1) :], skip_special_tokens=True)


def test_answer_is_the_models(run: Run, folder: Path):
    ran = run(
        "generate", "--model", folder, "--prompt", PROMPT, "--schedule", "dense",
        "--max-new-tokens", 9, "--json",
    )  # fmt: skip
    data = as_json(ran)
    assert data["lazy"]["answer"] == transformers_answer(folder, PROMPT, 9)
    assert data["lazy"]["new_tokens"] == 9
    assert data["dense"] is None
    assert data["same_answer"] is None
    assert data["dtype"] == "float32"
    assert data["schedule"] == "dense"


def test_json_tells_what_was_computed(run: Run, folder: Path, schedule: Path):
    ran = run(
        "generate", "--model", folder, "--prompt", PROMPT, "--schedule", schedule,
        "--max-new-tokens", 5, "--compare", "--json",
    )  # fmt: skip
    data = as_json(ran)
    prompt = data["prompt_tokens"]
    assert prompt == len(PROMPT)
    lazy, dense = data["lazy"], data["dense"]
    assert [(s["first_layer"], s["last_layer"]) for s in lazy["stages"]] == [(0, 1), (2, 2), (3, 4)]
    # The last token's keys are never computed: nothing comes after it.
    assert lazy["stages"][0]["tokens"] == prompt + 4
    assert prompt / 2 <= lazy["stages"][1]["tokens"] <= prompt
    assert prompt / 4 <= lazy["stages"][2]["tokens"] <= lazy["stages"][1]["tokens"]
    assert len(lazy["revived_per_boundary"]) == 2
    assert 0 < lazy["prompt_computed_percent"] < 100
    assert lazy["aux_bytes"] > 0
    assert lazy["ttft_seconds"] > 0
    assert lazy["decode_tokens_per_second"] > 0
    # 5 layers, keys and values, 2 heads of 12, float32.
    assert dense["kv_bytes"] == data["dense_kv_bytes"] == (prompt + 4) * 5 * 2 * 2 * 12 * 4
    assert dense["answer"] == transformers_answer(folder, PROMPT, 5)
    assert data["same_answer"] == (lazy["answer"] == dense["answer"])


def test_tables(run: Run, folder: Path, schedule: Path):
    ran = run(
        "generate", "--model", folder, "--prompt", PROMPT, "--schedule", schedule,
        "--max-new-tokens", 4, "--compare",
    )  # fmt: skip
    assert ran.status == 0, ran.stderr
    for words in (
        "tokens computed", "revived", "time to first token", "decoding", "Aux Cache",
        "keys and values", "same answer", "The dense model, for comparison",
    ):  # fmt: skip
        assert words in ran.stdout
    assert ran.stderr == ""  # no terminal, no progress bar


def test_one_token_has_no_decoding_speed(run: Run, folder: Path):
    arguments = ("generate", "--model", folder, "--prompt", PROMPT, "--max-new-tokens", 1)
    assert as_json(run(*arguments, "--json"))["lazy"]["decode_tokens_per_second"] is None
    ran = run(*arguments)
    assert ran.status == 0
    assert "tokens/s" not in ran.stdout


def test_progress_bar_on_a_terminal(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    ran = run("generate", "--model", folder, "--prompt", PROMPT, "--max-new-tokens", 2)
    assert "prefill" in ran.stderr
    assert "5 of 5" in ran.stderr


def test_prompt_from_argument_file_and_standard_input(run: Run, folder: Path, tmp_path: Path):
    file = tmp_path / "prompt.txt"
    file.write_text(PROMPT, encoding="utf-8")
    rest = ("--model", folder, "--max-new-tokens", 6, "--json")
    answers = {
        as_json(run("generate", *rest, *source, stdin=PROMPT))["lazy"]["answer"]
        for source in (("--prompt", PROMPT), ("--prompt-file", file), ())
    }
    assert len(answers) == 1


def test_question_is_a_paragraph_of_its_own(run: Run, folder: Path):
    rest = ("--model", folder, "--max-new-tokens", 6, "--json")
    asked = as_json(run("generate", *rest, "--prompt", "A fox.\n", "--question", "Who?"))
    assert asked["prompt_tokens"] == len("A fox.\n\nWho?")
    whole = as_json(run("generate", *rest, "--prompt", "A fox.\n\nWho?"))
    assert asked["lazy"]["answer"] == whole["lazy"]["answer"]


def test_chat_template_where_there_is_one(run: Run, folder: Path, chat_folder: Path):
    def tokens(model: Path, *more: str) -> int:
        ran = run(
            "generate",
            "--model",
            model,
            "--prompt",
            "A fox.",
            "--max-new-tokens",
            1,
            "--json",
            *more,
        )
        return int(as_json(ran)["prompt_tokens"])

    bare = tokens(folder)
    assert tokens(chat_folder) == bare + len("<u><a>") == tokens(chat_folder, "--chat")
    assert tokens(chat_folder, "--no-chat") == bare


def test_sampling_is_repeatable(run: Run, folder: Path):
    def answer(seed: int) -> str:
        ran = run(
            "generate", "--model", folder, "--prompt", PROMPT, "--max-new-tokens", 12, "--json",
            "--temperature", 2.0, "--seed", seed,
        )  # fmt: skip
        return str(as_json(ran)["lazy"]["answer"])

    assert answer(1) == answer(1) != answer(2)


def test_sampled_comparison_uses_the_same_seed(run: Run, folder: Path):
    ran = run(
        "generate", "--model", folder, "--prompt", PROMPT, "--max-new-tokens", 8, "--json",
        "--temperature", 2.0, "--seed", 3, "--schedule", "dense", "--compare",
    )  # fmt: skip
    assert as_json(ran)["same_answer"] is True


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype(run: Run, folder: Path, dtype: str):
    ran = run(
        "generate", "--model", folder, "--prompt", PROMPT, "--max-new-tokens", 3, "--json",
        "--dtype", dtype,
    )  # fmt: skip
    assert as_json(ran)["dtype"] == dtype


# What is refused


def refused(ran: Ran, message: str) -> None:
    """One sentence on standard error, status 2, nothing else."""
    assert (ran.status, ran.stdout) == (2, "")
    assert ran.stderr.startswith("lazyllm-ext: ")
    assert ran.stderr.count("\n") == 1
    assert message in ran.stderr


# What follows "Invalid value for" is typer's, and not the same in all of its releases.
BAD_OPTIONS: dict[str, tuple[list[Any], str]] = {
    "unknown option": (["--modell", "x"], "No such option: --modell"),
    "no number": (["--max-new-tokens", "many"], "'--max-new-tokens'"),
    "no new tokens": (["--max-new-tokens", 0], "Invalid value for '--max-new-tokens': "),
    "dtype": (["--dtype", "int8"], "Invalid value for '--dtype': "),
    "device": (["--device", "tpu"], "--device: expected cpu, cuda or cuda:N, got 'tpu'"),
    "other device": (["--device", "meta"], "--device: expected cpu, cuda or cuda:N, got 'meta'"),
    "negative temperature": (["--temperature", -1], "Invalid value for '--temperature': "),
    "temperature NaN": (["--temperature", "nan"], "--temperature"),
    "infinite temperature": (
        ["--temperature", "inf"],
        "--temperature: expected 0 or more, got inf",
    ),
    "seed without sampling": (["--seed", 1], "--seed: expected --temperature above 0 with it"),
    "seed too large": (["--seed", 2**63, "--temperature", 1], "Invalid value for '--seed': "),
    "negative seed": (["--seed", -1, "--temperature", 1], "Invalid value for '--seed': "),
    "empty prompt": (["--prompt", ""], "--prompt: expected a prompt, got an empty one"),
    "blank prompt": (["--prompt", " \n\t"], "--prompt: expected a prompt, got an empty one"),
    "blank question": (["--question", " "], "--question: expected a question, got an empty one"),
    "two prompts": (["--prompt-file", "x"], "expected one of --prompt and --prompt-file, got both"),
    "chat without a template": (["--chat"], "--chat: expected a model with a chat template"),
    "too long a prompt": (
        ["--prompt", "a" * (CONTEXT + 1)],
        f"prompt: expected at most {CONTEXT} tokens, the model's context, with the answer; got 257",
    ),
    "too long an answer": (["--prompt", "a" * CONTEXT], f"got {CONTEXT} and an answer of up to 64"),
    "unknown schedule": (
        ["--schedule", "quick"],
        "schedule: got 'quick', expected one of balanced",
    ),
    "model": (["--model", "/nowhere/at/all"], "model: no such folder: /nowhere/at/all"),
}


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_bad_options(run: Run, folder: Path, options: list[Any], message: str):
    arguments = ["--model", folder, "--prompt", "A fox.", *options]
    refused(run("generate", *arguments), message)


BAD_SCHEDULES: dict[str, tuple[str, str]] = {
    "not JSON": ("boundaries: none", "expected JSON, got other text"),
    "a layer past the end": (
        '{"boundaries": [{"layer": 5, "keep": 0.5}]}',
        "layer 5, which is past the end of a model of 5 layers",
    ),
    "the last layer": ('{"boundaries": [{"layer": 4, "keep": 0.5}]}', "which is the last of 5"),
    "out of order": (
        '{"boundaries": [{"layer": 2, "keep": 0.5}, {"layer": 1, "keep": 0.5}]}',
        "expected each layer above the one before it, got 1 after 2",
    ),
    "keep 0": ('{"boundaries": [{"layer": 2, "keep": 0}]}', "above 0 and at most 1, got 0"),
    "keep above 1": ('{"boundaries": [{"layer": 2, "keep": 2}]}', "above 0 and at most 1, got 2"),
    "keep NaN": ('{"boundaries": [{"layer": 2, "keep": NaN}]}', "above 0 and at most 1, got nan"),
    "growing": (
        '{"boundaries": [{"layer": 1, "keep": 0.1}, {"layer": 2, "keep": 0.2}]}',
        "expected keep never to grow from one boundary to the next, got 0.2 after 0.1",
    ),
}


@pytest.mark.parametrize(("text", "message"), BAD_SCHEDULES.values(), ids=BAD_SCHEDULES.keys())
def test_bad_schedules(run: Run, folder: Path, tmp_path: Path, text: str, message: str):
    file = tmp_path / "bad.json"
    file.write_text(text, encoding="utf-8")
    ran = run("generate", "--model", folder, "--prompt", "A fox.", "--schedule", file)
    refused(ran, message)
    assert file.read_text(encoding="utf-8") == text


def test_prompt_files_that_cannot_be_read(run: Run, folder: Path, tmp_path: Path):
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    for file, message in (
        (tmp_path / "none.txt", "No such file"),
        (tmp_path, "Is a directory"),
        (binary, "expected UTF-8 text"),
    ):
        refused(run("generate", "--model", folder, "--prompt-file", file), message)
    refused(run("generate", "--model", folder), "standard input: expected a prompt, got an empty")


def test_folders_that_are_no_model(run: Run, folder: Path, tmp_path: Path):
    def refuse(message: str) -> None:
        refused(run("generate", "--model", tmp_path, "--prompt", "A fox."), message)

    refuse("model: expected a transformers model, got a folder without config.json")
    config = tmp_path / "config.json"
    config.write_text("{", encoding="utf-8")
    refuse("config.json cannot be read")
    config.write_text("[]", encoding="utf-8")
    refuse("config.json: expected a JSON object, got []")
    config.write_text('{"model_type": "opt"}', encoding="utf-8")
    refuse(f"expected a model of type {', '.join(SUPPORTED)}, got 'opt' in")
    for file in folder.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    refuse("model.safetensors")  # it is missing
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    refuse("")
    assert (tmp_path / "model.safetensors").read_bytes() == b"no weights"


@pytest.mark.parametrize("quiet", [[], ["--json"]])
def test_interrupt(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, quiet: list[str]):
    put = TimedStreamer.put

    def put_and_interrupt(stream: TimedStreamer, value: Tensor) -> None:
        put(stream, value)
        if len(stream.clock.times) == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TimedStreamer, "put", put_and_interrupt)
    # A shell starts background jobs with interrupts ignored: the test must not depend on it.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        ran = run("generate", "--model", folder, "--prompt", PROMPT, *quiet)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert ran.status == 130
    assert ran.stderr == "lazyllm-ext: interrupted after 3 tokens\n"
    assert "tokens computed" not in ran.stdout
    if quiet:
        assert ran.stdout == ""
