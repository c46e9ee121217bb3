"""What the layout promises: imports point downwards, names mean one thing, files are short."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest
from importlinter.cli import lint_imports

import lazyllm_ext

PACKAGE = Path(lazyllm_ext.__file__).parent
PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
MODULES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def _name(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def test_imports_point_downwards(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # import-linter puts the working directory first, where the sources would hide the package.
    monkeypatch.setattr(sys, "path", list(sys.path))
    status = lint_imports(config_filename=str(PYPROJECT), no_cache=True)
    said = capsys.readouterr().out
    assert status == 0, said
    assert "Contracts: 3 kept, 0 broken." in said


def test_no_import_circles() -> None:
    graph = grimp.build_graph("lazyllm_ext", cache_dir=None, exclude_type_checking_imports=True)
    assert "lazyllm_ext.decoder.loop" in graph.modules
    # Raises CycleError, which names the circle.
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    tuple(TopologicalSorter(imports).static_order())


def test_a_class_name_stands_for_one_thing() -> None:
    homes: defaultdict[str, list[str]] = defaultdict(list)
    for path, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(_name(path))
    assert homes["LazyDecoder"] == ["decoder/loop.py"]
    assert {name: where for name, where in homes.items() if len(where) > 1} == {}


def test_files_are_short() -> None:
    lengths = {_name(path): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


@pytest.mark.parametrize("room", ["decoder", "state", "hf"])
def test_functions_fit_a_screen(room: str) -> None:
    lengths = {
        (_name(path), function.name): function.end_lineno - function.lineno + 1
        for path, tree in MODULES.items()
        if path.is_relative_to(PACKAGE / room)
        for function in _functions(tree)
    }
    assert lengths
    assert {name: length for name, length in lengths.items() if length > 60} == {}
