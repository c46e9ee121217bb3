"""transformers' own generation tests, run on models with LazyLLM. Fetches nothing.

    python scripts/transformers_tests.py CHECKOUT [--families llama,gemma3]

CHECKOUT is a checkout of transformers of the installed version (its source distribution has no
`tests/generation`). Of every family that LazyLLM supports and that has a suite there, the tests of
`GenerationTesterMixin` run twice: as they are, and with LazyLLM applied to each model under
schedules that keep all tokens. A test that passes by itself has to pass with LazyLLM, and each call
of `generate` in it has to give what the same call gives without; or it is refused by name, in the
words of scripts/transformers_refusals.txt. Anything else ends the run with 1; lines there that no
test met are named. The last line counts.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from typing import Any

REFUSALS = Path(__file__).with_name("transformers_refusals.txt")
RESULTS = "LAZYLLM_TEST_RESULTS"  # where a run of pytest writes what happened
APPLIED = "LAZYLLM_TEST_APPLIED"


def expected_refusals() -> list[tuple[str, str]]:
    """(pattern of a test's name, part of the sentence) for each line of the list."""
    lines = [line.strip() for line in REFUSALS.read_text().splitlines()]
    pairs = [line.partition(": ") for line in lines if line and not line.startswith("#")]
    return [(pattern, words) for pattern, _, words in pairs]


def suites(checkout: Path, wanted: list[str]) -> list[str]:
    """Test files of the supported families, or of those that are wanted."""
    from lazyllm_ext.hf import SUPPORTED

    folders = sorted({kind.removesuffix("_text") for kind in SUPPORTED})
    files = [f"tests/models/{name}/test_modeling_{name}.py" for name in wanted or folders]
    missing = [file for file in files if not (checkout / file).is_file()]
    if not (checkout / "tests/generation/test_utils.py").is_file() or (wanted and missing):
        lacks = missing[0] if wanted and missing else "tests/generation/test_utils.py"
        raise SystemExit(
            f"{checkout}: expected a checkout of transformers, got one without {lacks}"
        )
    return [file for file in files if file not in missing]


def run(checkout: Path, files: list[str], results: Path, applied: bool) -> dict[str, list[str]]:
    """What happened to each test: "passed", "skipped", "refused" or "failed", and its words."""
    folders = [str(Path(__file__).parent), str(checkout), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        RESULTS: str(results),
        APPLIED: "1" if applied else "",
        "PYTHONPATH": os.pathsep.join(filter(None, folders)),
    }
    options = ["-q", "--tb=line", "-p", "transformers_tests", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, "-o", "addopts=", *files]
    results.unlink(missing_ok=True)
    subprocess.run(command, cwd=checkout, env=environment, check=False)
    if not results.exists():
        raise SystemExit("pytest ended before it ran a test")
    happened: dict[str, list[str]] = json.loads(results.read_text())
    return happened


def judge(plain: dict[str, list[str]], lazy: dict[str, list[str]], every_suite: bool) -> int:
    listed = expected_refusals()
    met: set[tuple[str, str]] = set()
    counts: Counter[str] = Counter()
    compared = lazy.pop("compared")[1]
    for test, (outcome, words) in lazy.items():
        if plain.get(test, ["failed"])[0] != "passed":
            counts["not counted"] += 1  # skipped or failing without LazyLLM
            continue
        name = test.rpartition("::")[2]
        known = [line for line in listed if fnmatchcase(name, line[0]) and line[1] in words]
        if outcome == "refused" and known:
            met.update(known)
        elif outcome != "passed":
            counts["unexpected"] += 1
            print(f"{outcome}: {test}: {words}")
        counts[outcome] += 1
    stale = sorted({*listed} - met) if every_suite else []
    for pattern, words in stale:
        print(f"nothing was refused as this line of {REFUSALS.name} says: {pattern}: {words}")
    print(
        f"{counts['passed']} passed, {counts['refused']} refused by name, "
        f"{counts['failed']} failed; {counts['not counted']} skipped, or failing without LazyLLM; "
        f"{compared} calls gave what they give without"
    )
    return 1 if counts["unexpected"] or not counts["passed"] else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--families", default="", help="folders of tests/models, with commas")
    options = parser.parse_args()
    if find_spec("parameterized") is None:
        raise SystemExit("transformers' tests need the package parameterized, which is not here")
    checkout = options.checkout.resolve()
    files = suites(checkout, [name for name in options.families.split(",") if name])
    results = Path(__file__).parents[1] / "build" / "transformers_tests.json"
    results.parent.mkdir(exist_ok=True)
    plain, lazy = (run(checkout, files, results, applied) for applied in (False, True))
    raise SystemExit(judge(plain, lazy, not options.families))


# --- Within pytest, as a plugin of it ---

_happened: dict[str, list[str]] = {}
_compared = 0


def pytest_configure(config: Any) -> None:
    if os.environ.get(APPLIED):
        _apply_to_every_model()


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Of each suite the tests that the mixin brings."""
    from tests.generation.test_utils import GenerationTesterMixin

    items[:] = [item for item in items if hasattr(GenerationTesterMixin, item.name)]


def pytest_runtest_makereport(item: Any, call: Any) -> None:
    from lazyllm_ext import NotSupportedError

    if call.when == "teardown" or (item.nodeid in _happened and call.excinfo is None):
        return
    error = None if call.excinfo is None else call.excinfo.value
    if error is None:
        if call.when == "call":
            _happened[item.nodeid] = ["passed", ""]
    elif type(error).__name__ in ("Skipped", "SkipTest"):
        _happened[item.nodeid] = ["skipped", str(error)]
    else:
        kind = "refused" if isinstance(error, NotSupportedError) else "failed"
        _happened[item.nodeid] = [kind, str(error).partition("\n")[0]]


def pytest_sessionfinish(session: Any) -> None:
    tests = {**_happened, "compared": ["", str(_compared)]}
    Path(os.environ[RESULTS]).write_text(json.dumps(tests, indent=1))


def _apply_to_every_model() -> None:
    """LazyLLM on each model from its `eval()` on, and beside each `generate` the one without.

    A model is under schedule "dense", which gives the logits of all tokens, too; each `generate`
    that goes on from no cache under one with boundaries.
    """
    from transformers import PreTrainedModel

    import lazyllm_ext
    from lazyllm_ext.hf.api import Lazy
    from lazyllm_ext.hf.api.fallback import is_dense

    plain_eval, lazy_generate = PreTrainedModel.eval, Lazy.generate

    def eval_and_apply(model: Any) -> Any:
        plain_eval(model)
        if model.can_generate() and "generate" not in model.__dict__:
            lazyllm_ext.apply(model, "dense")
        return model

    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_dense(self.model):
            return lazy_generate(self, *args, **kwargs)
        _spare_assistant(kwargs)
        expected = _without_lazy(self, args, kwargs)
        if not any(kwargs.get(name) for name in ("cache", "past_key_values")):
            kwargs["lazy_schedule"] = _keep_all(self.model)
        result = lazy_generate(self, *args, **kwargs)
        if expected is not None:
            _check_equal(result, expected)
        return result

    PreTrainedModel.eval = eval_and_apply
    Lazy.generate = generate


def _spare_assistant(kwargs: dict[str, Any]) -> None:
    """An assistant has to be a model of its own without LazyLLM."""
    applied = getattr(kwargs.get("assistant_model"), "__dict__", {})
    if "generate" in applied:
        kwargs["assistant_model"] = copy.deepcopy(kwargs["assistant_model"])
        kwargs["assistant_model"].generate.__self__.remove()


def _keep_all(model: Any) -> dict[str, Any]:
    import lazyllm_ext

    layers = lazyllm_ext.LazyDecoder.from_model(model, "dense").layers[:-1]
    boundaries = [{"layer": i, "keep": 1.0} for i, layer in enumerate(layers) if layer.window == 0]
    return {"boundaries": boundaries, "window": 3, "pool": 3}


def _without_lazy(lazy: Any, args: Any, kwargs: Any) -> Any:
    """What transformers makes of the same call; None where it cannot be asked."""
    import torch

    from lazyllm_ext.hf.api.fallback import as_transformers
    from lazyllm_ext.hf.cache import LazyCache

    if any(isinstance(value, LazyCache) for value in kwargs.values()):
        return None
    random = torch.get_rng_state()
    try:
        args, kwargs = copy.deepcopy((args, kwargs))
        with as_transformers(lazy.model):
            return lazy.model.generate(*args, **kwargs)
    except Exception:  # it fails without LazyLLM, too, or cannot be copied
        return None
    finally:
        torch.set_rng_state(random)


def _tensors(result: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    import torch

    if isinstance(result, torch.Tensor):
        yield name, result
    elif isinstance(result, dict):
        for key, value in result.items():
            if key not in ("cache", "past_key_values"):
                yield from _tensors(value, f"{name}.{key}")
    elif isinstance(result, (tuple, list)):
        for number, value in enumerate(result):
            yield from _tensors(value, f"{name}.{number}")


def _check_equal(got: Any, expected: Any) -> None:
    import torch

    global _compared
    ours, theirs = dict(_tensors(got)), dict(_tensors(expected))
    assert ours.keys() == theirs.keys(), f"of one alone: {sorted(ours.keys() ^ theirs.keys())}"
    for name, tensor in theirs.items():
        torch.testing.assert_close(
            ours[name], tensor, atol=1e-4, rtol=1e-4,
            msg=lambda text, name=name: f"generate differs from transformers: {name}: {text}",
        )  # fmt: skip
    _compared += 1


if __name__ == "__main__":
    main()
