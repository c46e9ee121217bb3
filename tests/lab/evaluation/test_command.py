"""`lazyllm-ext eval` as a command."""

from __future__ import annotations

import importlib.util
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lazyllm_ext.lab.evaluation import only_run, runner

Run = Callable[..., Any]


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def scores(folder: Path) -> list[tuple[Any, ...]]:
    """What two runs have in common."""
    names = ("key", "score", "scores", "output", "kl", "profile")
    return [tuple(record[name] for name in names) for record in records(folder)]


def test_whole_run_twice(run: Run, folder: Path, tasks: Path, schedule: Path, tmp_path: Path):
    tasks.write_text(tasks.read_text() + "{broken\n")
    specs = f"dense,{schedule},random:{schedule}"
    outputs = [tmp_path / "one", tmp_path / "two"]
    for output in outputs:
        ran = run("eval", folder, "--tasks", tasks, "--contenders", specs, "--limit", 1,
                  "--output", output, "--page", "qa-0")  # fmt: skip
        assert ran.status == 0, ran.stderr
    assert scores(outputs[0]) == scores(outputs[1])
    assert len(records(outputs[0])) == 6  # a question and a text, three contenders
    for words in ("mean of categories", "random:pruned", "100 tokens", "language-modelling"):
        assert words in ran.stdout
    assert f"{tasks}:5: expected JSON" in ran.stderr
    assert "broken lines skipped: 1" in ran.stderr
    assert sorted(file.name for file in outputs[0].iterdir()) == [
        "kept_tokens.png", "page-qa-0.html", "records.jsonl", "report.json", "report.md",
        "score_vs_ttft.png",
    ]  # fmt: skip
    assert json.loads((outputs[0] / "report.json").read_text())["skipped"][0].startswith(
        f"{tasks}:5: "
    )


def test_folder_of_schedules(run: Run, folder: Path, tasks: Path, schedule: Path, tmp_path: Path):
    """Two lengths, and a schedule for each kind: tables of both, and of all together."""
    lines = [json.loads(line) for line in tasks.read_text().splitlines()]
    lines[1]["target_tokens"] = 50
    tasks.write_text("\n".join(map(json.dumps, lines)))
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    (tuned / "qa.json").write_text(schedule.read_text())
    (tuned / "lm.json").write_text('{"boundaries": [{"layer": 2, "keep": 0.5}]}')
    arguments = ("eval", folder, "--tasks", tasks, "--contenders", f"dense,{tuned}", "--output")
    ran = run(*arguments, tmp_path / "out")
    assert ran.status == 0, ran.stderr
    for words in (": 50 tokens, against", ": 100 tokens, against", ": All lengths, against"):
        assert words in ran.stdout
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| mean of categories | tuned | 4 |" in text.partition("## All lengths")[2]
    ran = run(*arguments, tuned)
    assert ran.status == 2
    assert ran.stderr == (
        f"lazyllm-ext: --output: expected another folder than that of the schedules, got {tuned}\n"
    )


def test_results_that_are_called_as_a_contender(
    run: Run, folder: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Twice: the second run goes on from the first one's folder."""
    monkeypatch.chdir(tmp_path)
    for name, contender in (("dense", "dense"), ("balanced", "random:balanced")):
        for _ in range(2):
            ran = run("eval", folder, "--tasks", tasks, "--contenders", contender, "--limit", 1,
                      "--output", name)  # fmt: skip
            assert ran.status == 0, ran.stderr
        assert len(records(tmp_path / name)) == 2


def test_interrupt_leaves_what_is_finished(
    run: Run, folder: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plain, calls = runner.measure, 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return plain(*arguments)

    arguments = ("eval", folder, "--tasks", tasks, "--contenders", "dense,static:0.5",
                 "--output", tmp_path / "out")  # fmt: skip
    monkeypatch.setattr(runner, "measure", interrupted)
    ran = run(*arguments)
    assert ran.status == 130
    assert ran.stderr == (
        "lazyllm-ext: interrupted with 6 results to go; the same command goes on from there\n"
    )
    monkeypatch.setattr(runner, "measure", plain)
    ran = run(*arguments)
    assert ran.status == 0
    assert "2 results found" in ran.stderr
    assert len(records(tmp_path / "out")) == 8


def test_progress_on_a_terminal(
    run: Run, folder: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FORCE_COLOR", "1")
    ran = run("eval", folder, "--tasks", tasks, "--contenders", "dense", "--limit", 1,
              "--output", tmp_path / "out")  # fmt: skip
    assert "remaining" in ran.stderr
    assert "2/2" in ran.stderr


def test_chat_template_and_answer_prefix_make_other_prompts(
    run: Run, chat_folder: Path, tasks: Path, tmp_path: Path
):
    lines = [json.loads(line) for line in tasks.read_text().splitlines()][:1]
    lines[0].update(chat=True, answer_prefix=" In")
    tasks.write_text(json.dumps(lines[0]))
    tokens = []
    for options in ((), ("--no-chat",), ("--no-chat", "--answer-prefix"), ("--answer-prefix",)):
        output = tmp_path / "-".join(("out", *options))
        ran = run("eval", chat_folder, "--tasks", tasks, "--contenders", "dense",
                  "--output", output, *options)  # fmt: skip
        assert ran.status == 0, ran.stderr
        tokens.append(records(output)[0]["prompt_tokens"])
    plain = len(lines[0]["prompt"])
    assert tokens == [plain + len("<u><a>"), plain, plain + len(" In"), plain + len("<u><a>")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--contenders", "nothing"], "--contenders: expected dense, a schedule"),
        (["--contenders", "dense,static:2"], "--contenders: static: expected the part"),
        (["--against", "fast"], "--against: expected one of dense, balanced, got 'fast'"),
        (["--page", "qa-9"], "--page: expected the id of an item that is run, got 'qa-9'"),
        (
            ["--lengths", "long"],
            "--lengths: expected whole numbers with commas between, got 'long'",
        ),
        (["--lengths", "300"], "--lengths: got 300, expected one of the items': 100"),
        (["--limit", "0"], "Invalid value for '--limit': "),
        (["--dtype", "int8"], "Invalid value for '--dtype': "),
        (["--tasks", "nowhere.jsonl"], "--tasks: no such file or folder: 'nowhere.jsonl'"),
    ],
)
def test_bad_input(
    run: Run, folder: Path, tasks: Path, tmp_path: Path, options: list[str], message: str
):
    ran = run("eval", folder, "--tasks", tasks, "--output", tmp_path / "out", *options)
    assert ran.status == 2
    assert ran.stderr.startswith(f"lazyllm-ext: {message}")
    assert ran.stderr.count("\n") == 1


def test_model_that_is_not_there(run: Run, tasks: Path, tmp_path: Path):
    ran = run("eval", tmp_path / "none", "--tasks", tasks, "--output", tmp_path / "out")
    assert ran.status == 2
    assert ran.stderr == f"lazyllm-ext: model: no such folder: {tmp_path / 'none'}\n"


def test_says_which_extra_to_install(
    run: Run, folder: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lazyllm_ext.lab.tools.figures.find_spec", lambda name: None)
    assert importlib.util.find_spec("matplotlib") is not None
    ran = run("eval", folder, "--tasks", tasks, "--output", tmp_path / "out")
    assert ran.status == 2
    assert ran.stderr == (
        "lazyllm-ext: plots: expected matplotlib; install it with pip install 'lazyllm-ext[lab]'\n"
    )


def test_half_a_surrogate_pair_is_named_left_out_and_counted(
    run: Run, folder: Path, tasks: Path, tmp_path: Path
):
    """Also in a field that only becomes a part of the record, or of the report."""
    line = json.loads(tasks.read_text().splitlines()[0])
    broken = [{**line, "id": name, name: "x\ud800"} for name in ("task", "prompt", "question")]
    broken.append({**line, "id": "answers", "answers": ["\udfff"]})
    tasks.write_text(json.dumps(line) + "\n" + "\n".join(map(json.dumps, broken)))
    ran = run("eval", folder, "--tasks", tasks, "--contenders", "dense", "--output", tmp_path / "o")
    assert ran.status == 0, ran.stderr
    for number, name in enumerate(("task", "prompt", "question", "answers"), start=2):
        assert f"{tasks}:{number}: {name}: expected text, got half of a surrogate" in ran.stderr
    assert "broken lines skipped: 4" in ran.stderr
    assert len(records(tmp_path / "o")) == 1


def test_a_disk_that_is_full(run: Run, folder: Path, tasks: Path, tmp_path: Path):
    """A sentence; what is whole stays, and the next run goes on from there."""
    arguments = ("eval", folder, "--tasks", tasks, "--contenders", "dense", "--output", tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, hard))  # bytes of any file
    try:
        ran = run(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert ran.status == 2
    assert ran.stderr == f"lazyllm-ext: --output: cannot use '{tmp_path}': File too large\n"
    ran = run(*arguments)
    assert ran.status == 0, ran.stderr
    assert len(records(tmp_path)) == len(tasks.read_text().splitlines())


def test_one_run_in_a_folder_at_a_time(run: Run, folder: Path, tasks: Path, tmp_path: Path):
    arguments = ("eval", folder, "--tasks", tasks, "--contenders", "dense", "--output", tmp_path)
    with only_run(tmp_path):
        ran = run(*arguments)
    assert (ran.status, ran.stdout) == (2, "")
    assert "--output: expected a folder that no other run writes to at the same" in ran.stderr
    assert run(*arguments).status == 0


def test_what_the_models_own_files_ask_for(
    run: Run, folder: Path, tasks: Path, tmp_path: Path, asking: Callable[..., Path]
):
    """Answers are the likeliest tokens; the form of outputs and penalties have no effect."""
    outputs = []
    for place, model in (("plain", folder), ("asks", asking(use_cache=False, num_beams=3,
                                                            repetition_penalty=1.5))):  # fmt: skip
        ran = run("eval", model, "--tasks", tasks, "--contenders", "dense,balanced", "--output",
                  tmp_path / place)  # fmt: skip
        assert ran.status == 0, ran.stderr
        outputs.append([row[1:4] for row in scores(tmp_path / place)])
    assert outputs[0] == outputs[1]
    assert "without effect" in ran.stderr
    for told in ("use_cache=False", "num_beams=3", "repetition_penalty=1.5"):
        assert told in ran.stderr
