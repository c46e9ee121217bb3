"""`lazyllm-ext serve` as a command: what it says, how it ends, and what it refuses."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

import openai
import pytest
from cli.conftest import Ran

import lazyllm_ext.serve
from lazyllm_ext.serve import require_server


class Run(Protocol):
    def __call__(self, *arguments: object) -> Ran: ...


def test_from_its_start_to_its_end(folder: Path, tmp_path: Path) -> None:
    command = "from lazyllm_ext.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "serve", folder, "--port", "0", "--model-name", "mine"],
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
        client = openai.OpenAI(base_url=found[1], api_key="key", max_retries=0)
        completion = client.completions.create(model="mine", prompt="A fox.", max_tokens=3)
        assert completion.usage.completion_tokens == 3
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
