"""lm-evaluation-harness's model `lazyllm`: likelihoods, answers, and a task of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import lazyllm_ext

from .conftest import TEXT

if find_spec("lm_eval") is None:
    pytest.skip(
        "lm_eval is not installed: pip install 'lazyllm-ext[harness]'", allow_module_level=True
    )

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from lazyllm_ext.lab.evaluation.harness.model import LazyLM


def instances(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, arguments=own, idx=n) for n, own in enumerate(arguments)]


def scored(*arguments: tuple[str, str]) -> list[Instance]:
    return instances("loglikelihood", *arguments)


LIKELIHOODS = scored((TEXT, " Rome"), ("Short", "er"), (TEXT, " O"), (TEXT, " Oslo."), ("", "ab"))
ANSWERS = instances(
    "generate_until",
    (TEXT, {"until": ["\n\n"], "max_gen_toks": 8}),
    (TEXT[40:], {"until": ["\n\n"], "max_gen_toks": 8}),
    (TEXT[90:], {"until": ["\n\n"], "max_gen_toks": 8}),
)


@pytest.fixture(scope="session")
def plain(folder: Path) -> HFLM:
    return HFLM(pretrained=str(folder), device="cpu")


@pytest.fixture
def pruned(folder: Path, schedule: Path) -> LazyLM:
    return LazyLM(pretrained=str(folder), schedule=str(schedule), device="cpu")


def close(got: list[Any], expected: list[Any]) -> None:
    assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]
    assert [value for value, _ in got] == pytest.approx([value for value, _ in expected], rel=1e-4)


def test_dense_is_lm_evals_own(folder: Path, plain: HFLM):
    dense = LazyLM(pretrained=str(folder), schedule="dense", device="cpu", batch_size=2)
    close(dense.loglikelihood(LIKELIHOODS), plain.loglikelihood(LIKELIHOODS))
    rolling = instances("loglikelihood_rolling", (TEXT * 2,), ("few words",))
    assert dense.loglikelihood_rolling(rolling) == pytest.approx(
        plain.loglikelihood_rolling(rolling), rel=1e-4
    )
    assert dense.generate_until(ANSWERS) == plain.generate_until(ANSWERS)


def by_hand(folder: Path, schedule: Path, context: str, continuation: str) -> tuple[float, bool]:
    """Prefill pruned, then one token after the other through the public interface."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(context)["input_ids"]
    total, greedy = 0.0, True
    with lazyllm_ext.apply(model, str(schedule)) as lazy:
        cache = lazy.new_cache()
        for token in tokenizer(continuation)["input_ids"]:
            fed = torch.tensor([tokens])
            logits = model(fed, past_key_values=cache, logits_to_keep=1).logits[0, -1]
            total += float(logits.log_softmax(-1)[token])
            greedy &= int(logits.argmax()) == token
            tokens = [token]
    return total, greedy


def test_pruned_likelihoods(folder: Path, schedule: Path, pruned: LazyLM, plain: HFLM):
    got = pruned.loglikelihood(LIKELIHOODS)
    # The empty context becomes the token that begins a text.
    expected = [by_hand(folder, schedule, *request.args) for request in LIKELIHOODS[:-1]]
    close(got[:-1], expected)
    dense = plain.loglikelihood(LIKELIHOODS)
    assert abs(got[0][0] - dense[0][0]) > 1e-3  # something was dropped


def test_greedy_continuation_is_recognized(pruned: LazyLM):
    """What generate says is what log-likelihood calls greedy; in tokens, which need no text."""
    context = pruned.tok_encode(TEXT)
    fed = torch.tensor([context])
    said = pruned.model.generate(fed, do_sample=False, max_new_tokens=6)[0, len(context) :].tolist()
    other = [*said[:-1], (said[-1] + 1) % pruned.vocab_size]
    got = pruned._loglikelihood_tokens([(None, context, tokens) for tokens in (said, other)])
    assert [greedy for _, greedy in got] == [True, False]


def test_long_context_loses_its_beginning(pruned: LazyLM):
    """The model's context is 256; the last token of a continuation is not computed."""
    long = pruned.loglikelihood(scored((TEXT * 3, "abc")))
    assert long == pruned.loglikelihood(scored(((TEXT * 3)[-254:], "abc")))
    with pytest.raises(ValueError, match="expected at most 256 tokens, the model's context"):
        pruned.loglikelihood(scored((TEXT, "a" * 257)))


@pytest.mark.parametrize(
    ("context", "continuation", "empty"),
    [(TEXT, "", "continuation"), ("", "", None), (" ", " Rome", "context"), (" ", "", "context")],
)
def test_nothing_to_score(
    plain: HFLM, pruned: LazyLM, context: str, continuation: str, empty: str | None
):
    """Refused wherever lm_eval's own model refuses it, before anything is computed."""
    requests = scored((TEXT, " Rome"), (context, continuation))
    with pytest.raises((AssertionError, IndexError)):
        plain.loglikelihood(requests)
    if empty is None:  # lm_eval itself looks at the first token
        with pytest.raises(IndexError):
            pruned.loglikelihood(requests)
        return
    with pytest.raises(ValueError) as error:
        pruned.loglikelihood(requests)
    assert str(error.value).startswith(f"{empty}: expected at least one token, got none, in (")


def test_batches_give_what_single_ones_give(folder: Path, schedule: Path, pruned: LazyLM):
    batched = LazyLM(pretrained=str(folder), schedule=str(schedule), device="cpu", batch_size=3)
    assert batched.generate_until(ANSWERS) == pruned.generate_until(ANSWERS)


def test_schedule_is_in_the_results(pruned: LazyLM):
    assert pruned.get_model_info()["lazyllm_schedule"]["window"] == 4


def test_refusals(folder: Path):
    with pytest.raises(ValueError) as error:
        LazyLM(pretrained=str(folder), parallelize=True)
    assert str(error.value) == "parallelize: expected none with LazyLLM, got True"
    with pytest.raises(ValueError, match="schedule"):
        LazyLM(pretrained=str(folder), schedule="nothing", device="cpu")


def test_local_task(folder: Path, schedule: Path, tmp_path: Path):
    """lm_eval's command on a task of choices and one of answers, made here."""
    rows = [{"text": TEXT, "choices": [" Rome", " Oslo"], "label": n % 2} for n in range(3)]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    shared = (
        f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\n"
        'test_split: test\ndoc_to_text: "{{text}}"\n'
    )
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "choices.yaml").write_text(
        f"task: own_choices\n{shared}output_type: multiple_choice\ndoc_to_choice: choices\n"
        "doc_to_target: label\nmetric_list:\n  - metric: acc\n"
    )
    (tasks / "answers.yaml").write_text(
        f'task: own_answers\n{shared}output_type: generate_until\ndoc_to_target: "Rome"\n'
        "generation_kwargs:\n  until: ['.']\n  max_gen_toks: 5\n"
        "metric_list:\n  - metric: exact_match\n"
    )
    offline = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    ran = subprocess.run(
        [sys.executable, "-m", "lazyllm_ext.lab.evaluation.harness", "--model", "lazyllm",
         "--model_args", f"pretrained={folder},schedule={schedule}", "--device", "cpu",
         "--tasks", "own_choices,own_answers", "--include_path", str(tasks),
         "--output_path", str(tmp_path / "out")],
        env={**os.environ, **offline}, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-4000:]
    results = json.loads(next((tmp_path / "out").rglob("results_*.json")).read_text())
    # The same text three times, and the right choice is the other one in between.
    assert results["results"]["own_choices"]["acc,none"] in (
        pytest.approx(1 / 3),
        pytest.approx(2 / 3),
    )
    assert "exact_match,none" in results["results"]["own_answers"]
    assert results["config"]["lazyllm_schedule"]["window"] == 4
