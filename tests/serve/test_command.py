"""`lazyllm-ext serve` as a command: what it says, how it ends, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import openai
import pytest
from cli.conftest import Ran
from transformers import AutoModelForCausalLM, AutoTokenizer

import lazyllm_ext
import lazyllm_ext.serve
from lazyllm_ext.cli.serve import _log
from lazyllm_ext.serve import require_server

# What a model's own files may ask for, and the server gives as `generate` with one sequence does.
OWN = {
    "prompt_lookup_num_tokens": 4,
    "num_beams": 3,
    "use_cache": False,
    "return_dict_in_generate": True,
    "output_attentions": True,
    "cache_implementation": "static",
    "eos_token_id": 2,
}


class Run(Protocol):
    def __call__(self, *arguments: object) -> Ran: ...


def changed(folder: Path, to: Path, **own: Any) -> Path:
    """The model with other settings of its own for generation."""
    shutil.copytree(folder, to)
    (to / "generation_config.json").write_text(json.dumps(own), encoding="utf-8")
    return to


def test_from_its_start_to_its_end(folder: Path, tmp_path: Path) -> None:
    model = changed(folder, tmp_path / "model", **OWN)
    command = "from lazyllm_ext.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "serve", model, "--port", "0", "--model-name", "mine"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,  # not where the sources are
        env={**os.environ, "LAZYLLM_API_KEY": "key"},
    )
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        found = re.match(r"(http://127\.0\.0\.1:\d+/v1)  model mine, schedule balanced", line)
        assert found, line
        line = process.stderr.readline()
        assert all(f"{name}=" in line for name in OWN if name != "eos_token_id"), line
        client = openai.OpenAI(base_url=found[1], api_key="key", max_retries=0)
        completion = client.completions.create(
            model="mine", prompt="A fox.", max_tokens=8, temperature=0
        )
        assert completion.choices[0].text == _plain_answer(folder, "A fox.", 8)
        stream = client.completions.create(
            model="mine", prompt="A fox.", max_tokens=240, temperature=0, stream=True
        )
        next(iter(stream))
        process.send_signal(signal.SIGINT)
        with pytest.raises(openai.APIError, match="the server is stopping"):
            list(stream)
        rest = process.communicate(timeout=30)[1]
    finally:
        process.kill()
    assert process.returncode == 0
    assert "prompt 6 tokens" in rest
    assert rest.endswith("stopped\n")
    assert "Traceback" not in rest


def _plain_answer(folder: Path, prompt: str, tokens: int) -> str:
    """What the model says under the same schedule with nothing asked for in its files."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    lazyllm_ext.apply(model, "balanced")
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    new = model.generate(ids, max_new_tokens=tokens, do_sample=False)[0, ids.size(1) :]
    return tokenizer.decode(new, skip_special_tokens=True)


@pytest.mark.parametrize(
    "own,words",
    [
        ({"guidance_scale": 2.0}, "guidance_scale=2.0"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive"),
        ({"repetition_penalty": -1.0}, "generation configuration: expected what generate takes"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_settings_of_the_model_that_it_refuses(
    run: Run, folder: Path, tmp_path: Path, own: dict[str, Any], words: str
) -> None:
    ran = run("serve", changed(folder, tmp_path / "model", **own), "--port", 0)
    assert ran.status == 2
    assert words in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_a_template_that_is_none(run: Run, folder: Path, tmp_path: Path) -> None:
    model = changed(folder, tmp_path / "model")
    (model / "chat_template.jinja").write_text("{% for %}", encoding="utf-8")
    ran = run("serve", model, "--port", 0)
    assert ran.status == 2
    assert ran.stderr.startswith("lazyllm-ext: chat template: TemplateSyntaxError: ")
    assert ran.stderr.endswith(" (line 1)\n")


@pytest.mark.parametrize(
    "arguments,words",
    [
        (("--port", 70_000), "Invalid value for '--port': "),
        (("--cache-memory", -1), "Invalid value for '--cache-memory': "),
        (("--cache-memory", "inf"), "Invalid value for '--cache-memory': "),
        (("--max-tokens", 0), "Invalid value for '--max-tokens': "),
        (("--max-queue", -1), "Invalid value for '--max-queue': "),
        (("--schedule", "slow"), "slow"),
        (("--dtype", "int8"), "Invalid value for '--dtype': "),
        (("--host", "no.such.host.invalid"), "cannot listen on no.such.host.invalid:8000"),
    ],
)
def test_refusals(run: Run, folder: Path, arguments: tuple[Any, ...], words: str) -> None:
    ran = run("serve", folder, *arguments)
    assert ran.status == 2
    assert words in ran.stderr


def test_a_port_in_use(run: Run, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = run("serve", folder, "--port", port)
    assert ran.status == 2
    assert f"127.0.0.1:{port}: Address already in use" in ran.stderr


def test_no_folder(run: Run) -> None:
    assert "no such folder" in run("serve", "/no/such/folder").stderr


def test_without_fastapi(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazyllm_ext.serve, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"fastapi and uvicorn.*lazyllm-ext\[serve\]"):
        require_server()
    assert "pip install 'lazyllm-ext[serve]'" in run("serve", folder).stderr


def test_where_nobody_reads_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, closed_pipe = os.pipe()
    os.close(reader)
    for broken in (closed_pipe, os.open("/dev/full", os.O_WRONLY)):
        file = os.fdopen(broken, "w")
        monkeypatch.setattr(sys, "stderr", file)
        _log("a request")  # and its answer goes on
        monkeypatch.undo()
        with suppress(OSError):
            file.close()
