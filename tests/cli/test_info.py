"""`lazyllm-ext info` and the command line as a whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from lazyllm_ext.cli import info
from lazyllm_ext.schedule import PruningSchedule

from .conftest import Ran

OPERATORS = {
    "aux_gather", "aux_scatter_", "decoder_layer_", "gated_activation", "kv_append_",
    "lazy_attention", "linear", "rms_norm", "rotate", "select_tokens", "token_importance",
}  # fmt: skip


def test_json(run: Callable[..., Ran]):
    ran = run("info", "--json")
    assert (ran.status, ran.stderr) == (0, "")
    data = json.loads(ran.stdout)
    assert {"lazyllm-ext", "torch", "transformers"} <= data["versions"].keys()
    assert data["cpu_capability"] in ("scalar", "avx2", "avx512", "avx512_bf16", "amx")
    assert data["kernels"].keys() == OPERATORS
    for name, keys in data["kernels"].items():
        assert {"CPU", "Meta"} <= set(keys)
        with_cuda = bool(data["cuda_architectures"]) and name != "decoder_layer_"
        assert ("CUDA" in keys) == with_cuda
    for name in ("paper", "balanced", "fast", "dense"):
        assert PruningSchedule.from_dict(data["schedules"][name]) == PruningSchedule.load(name)


def test_tables(run: Callable[..., Ran]):
    ran = run("info")
    assert ran.status == 0
    for words in ("transformers", "CPU kernels", "CUDA architectures", "balanced", *OPERATORS):
        assert words in ran.stdout


@pytest.mark.parametrize(
    "arguments", [(), ("--help",), ("generate", "--help"), ("info", "--help"), ("bench", "--help")]
)
def test_help(run: Callable[..., Ran], arguments: tuple[str, ...]):
    ran = run(*arguments)
    assert ran.status == (0 if arguments else 2)
    assert "Usage: lazyllm-ext" in ran.stdout + ran.stderr


def test_unknown_command(run: Callable[..., Ran]):
    ran = run("generale")
    assert (ran.status, ran.stdout) == (2, "")
    assert "No such command 'generale'" in ran.stderr


def test_interrupt_while_loading(run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch):
    def interrupt() -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(info, "collect", interrupt)
    # A shell starts background jobs with interrupts ignored: the test must not depend on it.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        ran = run("info")
    finally:
        signal.signal(signal.SIGINT, handler)
    assert ran == Ran(130, "", "lazyllm-ext: interrupted\n")


def in_a_process(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-c", code], env={**os.environ, **variables}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip


def test_help_does_not_wait_for_transformers():
    done = in_a_process(
        "import sys; from lazyllm_ext.cli.app import run; run(['generate', '--help'])\n"
        "assert 'transformers' not in sys.modules"
    )
    assert done.returncode == 0, done.stderr


def test_unknown_cpu_capability():
    done = in_a_process(
        "import sys; sys.argv = ['lazyllm-ext', 'info']; from lazyllm_ext.cli import main; main()",
        LAZYLLM_CPU_CAPABILITY="mmx",
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "LAZYLLM_CPU_CAPABILITY" in done.stderr
    assert "mmx" in done.stderr


def test_the_stub_names_what_the_module_has():
    import ast
    from pathlib import Path

    import lazyllm_ext._C as built

    stub = Path(info.lazyllm_ext.__file__).with_name("_C.pyi").read_text(encoding="utf-8")
    named = {node.name for node in ast.parse(stub).body if isinstance(node, ast.FunctionDef)}
    assert named == {name for name in vars(built) if not name.startswith("_")}


MAIN = "import sys; sys.argv = {}; from lazyllm_ext_command import main; main()"


def test_standard_output_that_is_full():
    done = in_a_process(
        "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)\n"
        + MAIN.format(["lazyllm-ext", "info"])
    )
    assert done.returncode == 1
    assert done.stderr == (
        "lazyllm-ext: standard output: cannot be written: No space left on device\n"
    )


def test_interrupt_while_pytorch_is_imported():
    """By a hook on the import itself, so that the moment is always the same."""
    hook = (
        "import builtins, signal\n"
        "real = builtins.__import__\n"
        "def hook(name, *more):\n"
        "    if name == 'torch':\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "    return real(name, *more)\n"
        "builtins.__import__ = hook\n"
    )
    done = in_a_process(hook + MAIN.format(["lazyllm-ext", "info"]))
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "lazyllm-ext: interrupted\n"


@pytest.mark.parametrize("arguments", [["info", "\udcff"], ["generate", "--prompt", "a\udcff"]])
def test_bytes_that_are_no_utf8(run: Callable[..., Ran], arguments: list[str]):
    ran = run(*arguments)
    assert (ran.status, ran.stdout) == (2, "")
    assert ran.stderr.startswith("lazyllm-ext: command line: expected UTF-8 text, got b'")


@pytest.mark.parametrize(
    ("arguments", "got"),
    [
        (["generate", "--max-new-tokens", "0"], "'--max-new-tokens'"),
        (["generate", "--max-new-tokens=0"], "'--max-new-tokens'"),
        (["bench", "x", "--new-tokens", "many"], "'--new-tokens'"),
        (["tune", "x", "--prompts", "y", "--runs", "0"], "'--runs'"),
    ],
)
def test_a_message_about_a_range_says_what_was_got(
    run: Callable[..., Ran], arguments: list[str], got: str
):
    ran = run(*arguments)
    assert ran.status == 2
    assert got in ran.stderr
    value = arguments[-1].partition("=")[2] or arguments[-1]
    assert value in ran.stderr.replace("'", " ").split()
