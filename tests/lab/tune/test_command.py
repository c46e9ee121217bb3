"""`lazyllm-ext tune` as a command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lazyllm_ext.lab.tune import trial
from lazyllm_ext.schedule import PruningSchedule

Run = Callable[..., Any]
QUICK = ("--bound", "0.3", "--new-tokens", "2", "--runs", "4")


def test_whole_run(run: Run, folder: Path, prompts: Path, tmp_path: Path):
    prompts.write_text(prompts.read_text() + "{broken\n")
    output, report = tmp_path / "mine.json", tmp_path / "report"
    ran = run("tune", folder, "--prompts", prompts, "--output", output, "--report", report, *QUICK)
    assert ran.status == 0, ran.stderr
    assert f"{prompts}:5: expected JSON" in ran.stderr
    assert "prompts skipped: 1" in ran.stderr
    schedule = PruningSchedule.load(output)
    assert schedule.name == f"tuned-{folder.name}"
    assert schedule.boundaries
    for words in ("fewer operations", "tuned on 2 prompts", "checked on 2 prompts", "Written: "):
        assert words in ran.stdout
    assert (report / "frontier.png").is_file()
    ran = run("generate", "--model", folder, "--prompt", "x" * 90, "--schedule", output,
              "--max-new-tokens", 2)  # fmt: skip
    assert ran.status == 0, ran.stderr


def test_schedule_for_each_file(run: Run, folder: Path, prompts: Path, tmp_path: Path):
    kinds, tuned, report = tmp_path / "kinds", tmp_path / "tuned", tmp_path / "report"
    kinds.mkdir()
    lines = prompts.read_text().splitlines(keepends=True)
    (kinds / "qa.jsonl").write_text("".join(lines[:2]))
    (kinds / "lm.jsonl").write_text("".join(lines[2:]) + "{broken\n")
    ran = run("tune", folder, "--prompts", kinds, "--output", tuned, "--report", report, *QUICK)
    assert ran.status == 0, ran.stderr
    assert "lm.jsonl:3: expected JSON" in ran.stderr
    assert [line for line in ran.stdout.splitlines() if line.endswith(":")] == ["lm:", "qa:"]
    for kind in ("lm", "qa"):
        assert PruningSchedule.load(tuned / f"{kind}.json").name == f"tuned-{folder.name}-{kind}"
        assert f", {kind}\n" in (report / kind / "report.md").read_text()
    alone = tmp_path / "alone.json"
    ran = run("tune", folder, "--prompts", kinds / "qa.jsonl", "--output", alone, *QUICK)
    assert ran.status == 0, ran.stderr
    assert ":\n" not in ran.stdout
    both = [PruningSchedule.load(file) for file in (alone, tuned / "qa.json")]
    assert both[0].boundaries == both[1].boundaries != ()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (1, "few: prompts: expected at least 2, one to tune on and one to check with, got 1"),
        (0, "few: prompts: expected at least one item, got none"),
    ],
)
def test_a_file_of_several_with_too_few(
    run: Run, folder: Path, prompts: Path, tmp_path: Path, lines: int, message: str
):
    """Said before any of the others is tuned."""
    kinds = tmp_path / "kinds"
    kinds.mkdir()
    (kinds / "enough.jsonl").write_text(prompts.read_text())
    (kinds / "few.jsonl").write_text("\n".join(prompts.read_text().splitlines()[:lines]))
    ran = run("tune", folder, "--prompts", kinds, "--output", tmp_path / "tuned", *QUICK)
    assert ran.status == 2
    assert ran.stderr == f"lazyllm-ext: {message}\n"
    assert not (tmp_path / "tuned").exists()


def test_prompts_are_not_written_over(run: Run, folder: Path, prompts: Path, tmp_path: Path):
    file = tmp_path / "code.json"
    file.write_text(prompts.read_text())
    for output in (tmp_path, file):
        ran = run("tune", folder, "--prompts", file, "--output", output)
        assert ran.status == 2
        assert ran.stderr == (
            f"lazyllm-ext: --output: expected another path than that of the prompts, got {file}\n"
        )
        assert file.read_text() == prompts.read_text()


def test_says_so_when_nothing_helps(run: Run, folder: Path, prompts: Path, tmp_path: Path):
    output = tmp_path / "mine.json"
    ran = run("tune", folder, "--prompts", prompts, "--output", output, "--bound", "0",
              "--new-tokens", "2", "--limit", "2", "--boundaries", "1")  # fmt: skip
    assert ran.status == 0, ran.stderr
    assert ran.stdout.startswith("Dense: no schedule ")
    assert PruningSchedule.load(output).boundaries == ()


def test_progress_on_a_terminal(
    run: Run, folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FORCE_COLOR", "1")
    ran = run("tune", folder, "--prompts", prompts, "--output", tmp_path / "s.json", *QUICK)
    assert ran.status == 0
    assert "remaining" in ran.stderr


def test_chat_template(run: Run, chat_folder: Path, prompts: Path, tmp_path: Path):
    lines = [{**json.loads(line), "chat": True} for line in prompts.read_text().splitlines()]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    lengths = []
    for options in ((), ("--no-chat",)):
        ran = run("tune", chat_folder, "--prompts", prompts, "--output", tmp_path / "s.json",
                  "--report", tmp_path, *QUICK, "--runs", "1", *options)  # fmt: skip
        assert ran.status == 0, ran.stderr
        lengths.append(json.loads((tmp_path / "report.json").read_text())["tuned_tokens"])
    assert [chat - plain for chat, plain in zip(*lengths, strict=True)] == [len("<u><a>")] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bound", "-1"], "Invalid value for '--bound': "),
        (["--bound", "inf"], "--bound: expected a KL of at least 0 nats, got inf"),
        (["--agreement", "2"], "Invalid value for '--agreement': "),
        (["--limit", "1"], "Invalid value for '--limit': "),
        (["--boundaries", "4"], "Invalid value for '--boundaries': "),
        (["--dtype", "int8"], "Invalid value for '--dtype': "),
        (["--prompts", "nowhere.jsonl"], "--prompts: no such file or folder: 'nowhere.jsonl'"),
        (["--output", "no/where.json"], "--output: no such folder: no"),
        (["--output", "/dev/null"], "--output: cannot make the folder /dev/null: there is a file"),
    ],
)
def test_bad_input(
    run: Run, folder: Path, prompts: Path, tmp_path: Path, options: list[str], message: str
):
    arguments = ["--prompts", prompts, "--output", tmp_path / "s.json", *options]
    ran = run("tune", folder, *arguments)
    assert ran.status == 2
    assert ran.stderr.startswith(f"lazyllm-ext: {message}")
    assert ran.stderr.count("\n") == 1


def test_prompts_without_a_good_line(run: Run, folder: Path, tmp_path: Path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"text": "a"}\n{"prompt": "", "chat": 1}\n')
    ran = run("tune", folder, "--prompts", file)
    assert ran.status == 2
    assert ran.stderr == (
        "lazyllm-ext: --prompts: expected at least one item, got none; the first fault: "
        f"{file}:1: prompt: expected a text, got nothing\n"
    )


def test_one_prompt_is_not_enough(run: Run, folder: Path, tmp_path: Path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a"}\n')
    ran = run("tune", folder, "--prompts", file)
    assert ran.status == 2
    assert ran.stderr.startswith("lazyllm-ext: --prompts: expected at least 2, one to tune on")


def test_places_are_checked_before_the_search(
    run: Run, folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lazyllm_ext.cli.tune.load", lambda *how: pytest.fail("it was loaded"))
    (tmp_path / "file").touch()
    for options, said in (
        (["--output", "/dev/null/x.json"], "--output: no such folder: /dev/null"),
        (["--output", tmp_path / "no" / "x.json"], f"--output: no such folder: {tmp_path / 'no'}"),
        (["--output", "/dev/full"], "--output: cannot make the folder /dev/full: there is a file"),
        (["--report", tmp_path / "file"], "--report: cannot make the folder "),
        (["--report", tmp_path / "file" / "x"], "--report: cannot make the folder "),
    ):
        ran = run("tune", folder, "--prompts", prompts, *options)
        assert ran.status == 2
        assert ran.stderr.startswith(f"lazyllm-ext: {said}")


def test_an_interrupted_search_goes_on(
    run: Run, folder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What was run is not run again, whatever became of the last line; the result is the same."""
    calls: list[Any] = []
    of_trial = trial.run

    def interrupted_at(most: int) -> None:
        calls.clear()

        def run_trial(*what: Any) -> Any:
            if len(calls) == most:
                raise KeyboardInterrupt
            calls.append(what)
            return of_trial(*what)

        monkeypatch.setattr(trial, "run", run_trial)

    def tune(name: str) -> Any:
        return run("tune", folder, "--prompts", prompts, "--output", tmp_path / name, *QUICK)

    interrupted_at(10**9)
    assert tune("whole.json").status == 0
    whole, kept = len(calls), tmp_path / "mine.json.partial"
    assert not list(tmp_path.glob("*.partial"))
    interrupted_at(3)
    ran = tune("mine.json")
    assert ran.status == 130
    assert f"interrupted with 3 results in {kept}; the same command goes on" in ran.stderr
    kept.write_bytes(kept.read_bytes()[:-9])
    interrupted_at(10**9)
    ran = tune("mine.json")
    assert ran.status == 0, ran.stderr
    assert f"2 results found in {kept}" in ran.stderr
    assert len(calls) == whole - 2
    assert not kept.exists()
    assert (tmp_path / "mine.json").read_text() == (tmp_path / "whole.json").read_text()
