"""`lazyllm-ext eval` under torchrun: two processes together do what one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lazyllm_ext.lab.evaluation import Processes, Record, Records

from .test_command import records, scores
from .test_runs import evaluation

Run = Callable[..., Any]


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line in two processes."""
    script = Path(__file__).with_name("in_parallel.py")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [sys.executable, *launcher, str(script), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_two_processes_give_what_one_gives(
    run: Run, folder: Path, tasks: Path, schedule: Path, tmp_path: Path
) -> None:
    """The second goes on from what a killed run of three processes left."""
    arguments = ("eval", folder, "--tasks", tasks, "--contenders", f"dense,random:{schedule}",
                 "--page", "qa-1", "--output")  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(*arguments, one).status == 0
    lines = (one / "records.jsonl").read_text().splitlines(keepends=True)
    two.mkdir()
    (two / "records.jsonl").write_text(lines[3] + lines[0][:40])
    (two / "records-of-rank-2.jsonl").write_text(lines[1] + lines[5][:40])
    ran = torchrun(*arguments, two)
    assert ran.returncode == 0, ran.stderr
    assert sorted(scores(two)) == sorted(scores(one))
    assert len(records(two)) == 8
    assert "2 results found" in ran.stderr
    assert ran.stderr.count("results found") == 1
    assert ran.stdout.count("Written: ") == 1
    assert sorted(file.name for file in two.iterdir()) == sorted(
        file.name for file in one.iterdir()
    )
    kept = ("category", "contender", "items", "score", "difference", "interval", "kl")
    rows = [
        [tuple(row[name] for name in kept) for row in json.loads(file.read_text())["rows"]]
        for file in (one / "report.json", two / "report.json")
    ]
    assert rows[0] == rows[1]


def test_each_item_is_run_by_one_process(subject: Any, tmp_path: Path) -> None:
    shares = []
    for rank in range(3):
        shared = evaluation(subject, tmp_path, ["dense", "static:0.5"])
        shared.processes = Processes(rank, 3)
        shares.append([job.item.id for job in shared.pending()])
    assert shares == [["qa-0"] * 2, ["lm-0"] * 2, []]


def test_files_of_several_processes(tmp_path: Path) -> None:
    def record(key: str) -> Record:
        return Record(key, "dense", "i", "t", "c", None, 1, 1.0, [1.0], {}, "é", 1.0, 1.0, 1.0, 1.0,
                      1.0, 1.0, 0.0, [])  # fmt: skip

    first, second = Records(tmp_path), Records(tmp_path, rank=1)
    first.append(record("a"))
    second.append(record("b"))
    assert first.get("b") is None
    first.gather()
    assert first.get("b") == record("b")
    again = Records(tmp_path)
    assert again.get("a")
    assert again.get("b")
    assert [file.name for file in tmp_path.iterdir()] == ["records.jsonl"]


def test_a_process_that_fails_ends_all(folder: Path, tasks: Path, tmp_path: Path) -> None:
    deep = tmp_path / "deep.json"
    deep.write_text('{"boundaries": [{"layer": 40, "keep": 0.5}]}')
    ran = torchrun("eval", folder, "--tasks", tasks, "--contenders", deep, "--output", tmp_path)
    assert ran.returncode != 0
    assert "got layer 40, which is past the end" in ran.stderr


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [("cuda", 4, "cuda:1"), ("cuda:0", 4, "cuda:0"), ("cpu", 4, "cpu"), ("cuda", 1, "cuda")],
)
def test_device(monkeypatch: pytest.MonkeyPatch, name: str, count: int, expected: str) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert Processes(rank=3, count=count, local_rank=3).device(name) == expected
