"""What a model's own files ask of the commands, and what in them is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helpers
import pytest
from safetensors.torch import load_file, save_file

from .conftest import CONTEXT, Ran
from .test_generate import PROMPT, Run, as_json, refused


def first_answer(ran: Ran) -> str:
    return as_json(ran)["lazy"]["answer"]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"num_beams": 4}, "num_beams=4"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens=3"),
        ({"use_cache": False}, "use_cache=False"),
        ({"return_dict_in_generate": True, "output_attentions": True}, "output_attentions=True"),
        ({"cache_implementation": "static"}, "cache_implementation='static'"),
    ],
)
def test_what_the_command_owns(
    run: Run, folder: Path, asking: Callable[..., Path], asked: dict[str, Any], told: str
):
    """The answer is as without; what has no effect is said. So it is with the dense model."""
    rest = ("--prompt", PROMPT, "--max-new-tokens", 8, "--json", "--compare")
    plain = run("generate", "--model", folder, *rest)
    ran = run("generate", "--model", asking(**asked), *rest)
    assert first_answer(ran) == first_answer(plain)
    assert as_json(ran)["dense"]["answer"] == as_json(plain)["dense"]["answer"]
    assert told in ran.stderr
    assert ran.stderr.startswith("lazyllm-ext: without effect, though the model's own files ask")


def test_stop_strings_of_the_model_end_an_answer(
    run: Run, folder: Path, asking: Callable[..., Path]
):
    rest = ("--prompt", PROMPT, "--max-new-tokens", 12, "--json")
    whole = first_answer(run("generate", "--model", folder, *rest))
    end = next(letter for letter in whole if " " < letter < "~")
    ran = run("generate", "--model", asking(stop_strings=[end]), *rest)
    assert first_answer(ran) == whole[: whole.index(end) + 1]
    assert ran.stderr == ""


def test_what_the_command_cannot_do_is_refused(run: Run, asking: Callable[..., Path]):
    ran = run("generate", "--model", asking(guidance_scale=2.0), "--prompt", PROMPT)
    refused(ran, "the model's generation configuration: generate: guidance_scale=2.0 is not")


def test_a_temperature_that_no_number_can_be_divided_by(run: Run, folder: Path):
    rest = ("--prompt", PROMPT, "--max-new-tokens", 6, "--json")
    greedy, cold = (
        run("generate", "--model", folder, *rest, "--temperature", t) for t in (0, 1e-300)
    )
    assert first_answer(cold) == first_answer(greedy)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for", "chat template: TemplateSyntaxError: unexpected 'end of template'"),
        ("{{ raise_exception('no users') }}", "chat template: TemplateError: no users"),
        ("{{ messages[7].content }}", "chat template: UndefinedError: "),
        ("{{ 1 // 0 }}", "chat template: ZeroDivisionError: "),
    ],
)
def test_chat_templates_that_fail(
    run: Run, chat_folder: Path, tmp_path: Path, template: str, said: str
):
    broken = shutil.copytree(chat_folder, tmp_path / "broken")
    (broken / "chat_template.jinja").write_text(template)
    refused(run("generate", "--model", broken, "--prompt", PROMPT), said)


def test_a_mark_before_a_prompt_is_not_part_of_it(run: Run, folder: Path, tmp_path: Path):
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"\xef\xbb\xbf" + PROMPT.encode())
    rest = ("--max-new-tokens", 1, "--json")
    counts = [
        as_json(run("generate", "--model", folder, *source, *rest))["prompt_tokens"]
        for source in (("--prompt", PROMPT), ("--prompt-file", file))
    ]
    assert counts[0] == counts[1]


def test_a_tokenizer_of_another_model(run: Run, folder: Path, tmp_path: Path):
    other = shutil.copytree(folder, tmp_path / "other")
    helpers.tiny_llama(max_position_embeddings=CONTEXT).save_pretrained(other)
    ran = run("generate", "--model", other, "--prompt", PROMPT)
    refused(ran, "prompt: expected tokens below 83, the model's vocabulary, got ")


def test_weights_that_are_missing(run: Run, folder: Path, tmp_path: Path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    for command in (
        ("generate", "--prompt", PROMPT, "--model", broken),
        ("bench", broken, "--prompt-tokens", 16, "--new-tokens", 2, "--rounds", 1),
        ("export", broken, "--output", tmp_path / "x.pt"),
    ):
        refused(run(*command), "got none for model.layers.2.mlp.up_proj.weight")


def test_the_folder_that_is_here(
    run: Run, asking: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    """Schedules and requests go by the folder's name."""
    (inside := asking() / "inside").mkdir()
    for place, name in ((inside.parent, "."), (inside, "..")):
        monkeypatch.chdir(place)
        ran = run("generate", "--model", name, "--prompt", PROMPT, "--json")
        assert as_json(ran)["model"] == "asking"
