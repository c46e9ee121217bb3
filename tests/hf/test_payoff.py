"""min_tokens="auto": what is searched, what is measured, and who may not ask for it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lazyllm_ext
from lazyllm_ext import PruningSchedule
from lazyllm_ext.hf.api import payoff
from lazyllm_ext.hf.api.payoff import NEVER, search

from .seeing import SEEING, seen
from .tiny import PRUNING, assert_same_generation, generate, tiny_model

AUTO: dict[str, Any] = {**PRUNING, "min_tokens": "auto"}


class TestSearch:
    @pytest.mark.parametrize("threshold", [33, 64, 65, 200, 1000, 4096])
    def test_the_shortest_that_pays(self, threshold: int) -> None:
        tried: list[int] = []

        def gain(tokens: int) -> float:
            tried.append(tokens)
            return 1.0 + 0.03 * tokens / threshold

        found = search(gain, 4096, 1e9)
        assert threshold <= found <= threshold + max(threshold // 7, 16)
        assert len(tried) == len(set(tried)) <= 13
        assert max(tried) <= 4096

    def test_at_once(self) -> None:
        assert search(lambda tokens: 2.0, 4096, 1e9) == 32
        assert search(lambda tokens: 2.0, 20, 1e9) == 20  # a model with a short context

    def test_never(self) -> None:
        tried: list[int] = []
        assert search(lambda tokens: float(tried.append(tokens) or 0.9), 100, 1e9) == NEVER
        assert tried == [32, 64, 100]

    def test_time_runs_out(self) -> None:
        """Longer prompts than were tried are pruned: dropping pays at some length."""
        assert search(lambda tokens: 0.9, 4096, 0.0) == 64


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Without dropping a prefill takes n, with it 40 + n / 2; the lengths that were timed."""
    timed: list[int] = []

    def seconds(decoder: Any, ids: Tensor) -> float:
        n = ids.numel()
        timed.append(n)
        whole = all(boundary.min_tokens == NEVER for boundary in decoder.boundaries)
        return float(n) if whole else 40 + n / 2

    monkeypatch.setattr(payoff, "_seconds", seconds)
    return timed


# n / (40 + n / 2) is 1.03 at 85 tokens.
FOUND = range(85, 102)


class TestApply:
    def test_by_an_argument(self, model: nn.Module, clock: list[int]) -> None:
        lazy = lazyllm_ext.apply(model, PRUNING, min_tokens="auto")
        assert lazy.schedule.min_tokens == "auto"
        prompts = torch.randint(3, 83, (1, 110), generator=torch.Generator().manual_seed(1))
        generate(model, 2, input_ids=prompts[:, :80])
        short = lazy.report()
        assert short.min_tokens in FOUND
        assert short.schedule["min_tokens"] == "auto"
        assert short.tokens_per_stage[2] == short.tokens_total
        generate(model, 2, input_ids=prompts)
        assert lazy.report().tokens_per_stage[2] < 60
        lazy.remove()
        fixed = lazyllm_ext.apply(model, PRUNING, min_tokens=7)
        generate(model, 2, input_ids=prompts)
        assert fixed.report().min_tokens == 7

    def test_by_a_file(self, model: nn.Module, clock: list[int], tmp_path: Path) -> None:
        path = tmp_path / "auto.json"
        path.write_text(PruningSchedule.from_dict(AUTO).to_json())
        assert PruningSchedule.load(path) == PruningSchedule.from_dict(AUTO)
        lazyllm_ext.apply(model, path)
        report = model(
            torch.ones(1, 3, dtype=torch.long), logits_to_keep=1
        ).past_key_values.report()
        assert report.min_tokens in FOUND

    def test_once_in_a_process(self, model: nn.Module, clock: list[int]) -> None:
        lazyllm_ext.apply(model, AUTO).remove()
        measured = len(clock)
        lazyllm_ext.apply(model, {**AUTO, "name": "the same"}).remove()
        assert len(clock) == measured > 0
        for change in (
            lambda: torch.set_num_threads(2),
            lambda: model.to(torch.bfloat16),
            lambda: AUTO | {"window": 4},
        ):
            changed = change()
            before = len(clock)
            lazyllm_ext.apply(model, changed if isinstance(changed, dict) else AUTO).remove()
            assert len(clock) > before
        before = len(clock)
        lazyllm_ext.apply(tiny_model("llama"), AUTO)  # another model
        assert len(clock) > before

    def test_of_one_call(self, model: nn.Module, ids: Tensor, clock: list[int]) -> None:
        lazy = lazyllm_ext.apply(model, "dense")
        assert not clock
        generate(model, input_ids=ids, lazy_schedule=AUTO)
        assert lazy.report().min_tokens in FOUND
        measured = len(clock)
        generate(model, input_ids=ids, lazy_schedule=AUTO)
        assert len(clock) == measured

    def test_nothing_to_measure(self, model: nn.Module, ids: Tensor, clock: list[int]) -> None:
        lazy = lazyllm_ext.apply(model, "dense", min_tokens="auto")
        generate(model, input_ids=ids)
        assert (lazy.report().min_tokens, clock) == (0, [])

    def test_a_saved_prefill_of_another_machine(
        self, ids: Tensor, clock: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """What is found may differ; from the file on the present number counts."""
        whole = torch.cat([ids[:1]] * 7, dim=1)  # 91 tokens
        lazy = lazyllm_ext.apply(tiny_model("llama"), AUTO)
        lazy.save(lazy.prefill(whole), tmp_path / "x")
        for least, stays in ((1, False), (500, True)):
            monkeypatch.setattr(payoff, "search", lambda *args, least=least: least)
            other = lazyllm_ext.apply(tiny_model("llama"), AUTO)
            cache = other.load(tmp_path / "x")
            more = torch.cat([whole, ids[:1, :9]], dim=1)
            generate(other.model, input_ids=more, past_key_values=cache)
            report = other.report()
            assert report.min_tokens == least
            if stays:  # as if nothing had been dropped: all that waited has come back
                assert report.tokens_per_stage[2] == report.tokens_total
            else:
                assert report.tokens_per_stage[2] < report.tokens_total

    def test_wrong(self, model: nn.Module) -> None:
        for wrong in ("always", -1, 2.5, True):
            with pytest.raises(
                ValueError, match='min_tokens: expected a number of tokens or "auto"'
            ):
                lazyllm_ext.apply(model, PRUNING, min_tokens=wrong)  # type: ignore[arg-type]


class TestReally:
    """No clock of our own: what a tiny model takes here."""

    @pytest.mark.parametrize("name", ["llama", "gemma3"])
    def test_measured(self, name: str, ids: Tensor) -> None:
        model = tiny_model(name)
        schedule = AUTO if name == "llama" else {"boundaries": [{"layer": 1, "keep": 0.4}]}
        began = time.perf_counter()
        lazy = lazyllm_ext.apply(model, schedule, min_tokens="auto")
        assert time.perf_counter() - began < 30
        out = generate(model, input_ids=ids)
        found = lazy.report().min_tokens
        assert 32 <= found <= 4096 or found == NEVER
        lazy.remove()
        with lazyllm_ext.apply(model, schedule, min_tokens=found):
            assert_same_generation(generate(model, input_ids=ids), out, tolerance=0)

    def test_with_images(self) -> None:
        model: Any = SEEING["llava"].make()
        lazy = lazyllm_ext.apply(
            model, {"boundaries": [{"layer": 1, "keep": 0.4}]}, min_tokens="auto"
        )
        generate(model, 2, **seen("llava", [5]))
        assert lazy.report().min_tokens >= 32


class TestRefused:
    def test_where_nothing_is_measured(self, model: nn.Module) -> None:
        for export in (False, True):
            with pytest.raises(
                ValueError, match='min_tokens: expected a number of tokens, got "au'
            ):
                lazyllm_ext.LazyDecoder.from_model(model, AUTO, export=export)

    def test_export(self, model: nn.Module, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match='min_tokens: expected a number of tokens, got "auto"'):
            lazyllm_ext.export.torchscript(model, AUTO, tmp_path / "model.pt")
        assert not (tmp_path / "model.pt").exists()
