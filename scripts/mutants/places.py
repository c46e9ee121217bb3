"""The places of a Python file where a mutation may be."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

_COMPARISONS = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"), ast.NotIn: ("not in", "in"),
}  # fmt: skip
_OPERATORS = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "+"), ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "+"), ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&"),
}  # fmt: skip
_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutation:
    """Bytes [begin, end) of a file become others."""

    file: str  # within the package
    begin: int
    end: int
    line: int
    text: str

    def apply(self, source: bytes) -> bytes:
        return source[: self.begin] + self.text.encode() + source[self.end :]

    def said(self, source: bytes) -> str:
        """`file: line as it was → as it is`, which does not change when lines above it do."""
        lines = [
            text.split(b"\n")[self.line - 1].strip().decode()
            for text in (source, self.apply(source))
        ]
        return f"{self.file}: {lines[0]} → {lines[1]}"


class Finder(ast.NodeVisitor):
    """The places of a file where a mutation may be; annotations and words are none."""

    def __init__(self, file: str, source: bytes):
        self.file, self.source = file, source
        self.starts = [0]
        for line in source.split(b"\n"):
            self.starts.append(self.starts[-1] + len(line) + 1)
        self.found: list[Mutation] = []

    def at(self, line: int, column: int) -> int:
        return self.starts[line - 1] + column

    def add(self, begin: int, end: int, text: str) -> None:
        line = self.source[:begin].count(b"\n") + 1
        self.found.append(Mutation(self.file, begin, end, line, text))

    def replace(self, node: ast.AST, text: str) -> None:
        self.add(
            self.at(node.lineno, node.col_offset),
            self.at(node.end_lineno, node.end_col_offset),
            text,
        )

    def between(self, left: ast.AST, right: ast.AST, old: str, new: str) -> None:
        """Replace the operator between two operands."""
        begin = self.at(left.end_lineno, left.end_col_offset)
        end = self.at(right.lineno, right.col_offset)
        place = self.source.find(old.encode(), begin, end)
        if place >= 0:
            self.add(place, place + len(old), new)

    def visit_Raise(self, node: ast.Raise) -> None:
        pass  # the words of an error

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name in ("__repr__", "said"):
            return
        for default in [*node.args.defaults, *filter(None, node.args.kw_defaults)]:
            self.visit(default)
        for statement in node.body:
            self.visit(statement)

    def visit_Compare(self, node: ast.Compare) -> None:
        for left, operator, right in zip(
            [node.left, *node.comparators], node.ops, node.comparators, strict=False
        ):
            self.between(left, right, *_COMPARISONS[type(operator)])
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if type(node.op) in _OPERATORS and not isinstance(node.left, (ast.Constant, ast.JoinedStr)):
            self.between(node.left, node.right, *_OPERATORS[type(node.op)])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.between(left, right, old, new)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self.add(
                self.at(node.lineno, node.col_offset),
                self.at(node.operand.lineno, node.operand.col_offset),
                "",
            )
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self.replace(node, str(not node.value))
        elif isinstance(node.value, int):
            self.replace(node, str(node.value + 1))

    def visit_Name(self, node: ast.Name) -> None:
        if node.id in _NAMES:
            self.replace(node, _NAMES[node.id])

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call):
            self.replace(node, "pass")
            self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.replace(node, "pass")
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        if "is_scripting" in ast.unparse(node.test) or "TYPE_CHECKING" in ast.unparse(node.test):
            return
        self.generic_visit(node)


def mutations(package: Path, prefixes: list[str]) -> list[Mutation]:
    """Every mutation of the package's files under these prefixes, in a fixed order."""
    found: list[Mutation] = []
    for prefix in prefixes:
        for path in sorted((package / prefix).rglob("*.py")):
            finder = Finder(str(path.relative_to(package)), path.read_bytes())
            finder.visit(ast.parse(finder.source))
            found += finder.found
    return found
