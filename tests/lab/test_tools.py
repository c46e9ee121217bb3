"""What bench, evaluation and tune share, as far as none of them shows it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from rich.progress import TextColumn

from lazyllm_ext.lab.tools.clock import TokenClock
from lazyllm_ext.lab.tools.dense import greedy
from lazyllm_ext.lab.tools.files import check_writable, os_error_as
from lazyllm_ext.lab.tools.tables import left_out, markdown, markdown_table, number, table_of
from lazyllm_ext.progress_bar import progress_bar, track


def test_the_prompt_is_no_new_token():
    clock = TokenClock()
    for _ in range(4):
        clock.put(torch.tensor([1]))
    assert len(clock.times) == 3
    assert clock.ttft == clock.times[0]
    assert clock.per_token == pytest.approx((clock.times[2] - clock.times[0]) / 2)


@pytest.mark.parametrize(
    ("most", "stop", "tokens"),
    [(0, (), []), (1, (), [2]), (3, (), [2, 3, 4]), (9, (4,), [2, 3, 4])],
)
def test_greedy(most: int, stop: tuple[int, ...], tokens: list[int]):
    """A model that says the next number; nothing is computed after the last token."""
    fed: list[int] = []

    def step(ids: torch.Tensor) -> torch.Tensor:
        fed.append(int(ids))
        return torch.eye(10)[ids + 1]

    found = list(greedy(torch.eye(10)[2], step, most, stop))
    assert [token for token, _ in found] == tokens == [int(row.argmax()) for _, row in found]
    assert fed == tokens[:-1]


def test_markdown():
    lines = markdown_table(["name", "figure"], [["a|b", "1\n2"]], names=1)
    assert lines == ["| name | figure |", "| --- | ---: |", "| a\\|b | 1 2 |"]
    assert markdown(table_of("title", ["", "x"], [["a", "1"]])) == [
        "|  | x |", "| --- | --- |", "| a | 1 |"
    ]  # fmt: skip
    assert left_out([]) == []
    assert left_out(["a|b"]) == ["Left out: 1.", "", "- a\\|b", ""]
    assert (number(None, 2), number(0.5, 1, 100)) == ("", "50.0")


def test_a_file_that_cannot_be_written(tmp_path: Path):
    with (
        pytest.raises(ValueError, match="output: cannot write: Is a directory"),
        os_error_as("output: cannot write"),
    ):
        tmp_path.write_text("")


def test_a_bar_is_for_terminals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    for terminal in (False, True):
        if terminal:
            monkeypatch.setenv("FORCE_COLOR", "1")
        with progress_bar(TextColumn("{task.description}"), total=2) as draw:
            draw(advance=1, description="half")
        assert list(track("ab", "letters")) == ["a", "b"]
        said = capsys.readouterr()
        assert said.out == ""
        assert ("half" in said.err, "letters" in said.err) == (terminal, terminal)
        assert terminal or said.err == ""


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a device"])
def test_what_is_no_file_is_refused_first(tmp_path: Path, kind: str) -> None:
    path = {"a folder": tmp_path, "a device": Path("/dev/full")}.get(kind, tmp_path / "pipe")
    if kind == "a pipe":
        os.mkfifo(path)
    with pytest.raises(ValueError, match=f"^output: expected a file, got {kind}: {path}$"):
        check_writable("output", path)
