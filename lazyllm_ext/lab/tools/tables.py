"""Tables, for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table


def table_of(title: str | None, header: Sequence[str], lines: Iterable[Sequence[str]]) -> Table:
    """A table for a terminal; columns without a header are names, figures stand on the right."""
    table = Table(title=title, title_justify="left")
    for name in header:
        table.add_column(name, justify="right" if name else "left")
    for line in lines:
        table.add_row(*line)
    return table


def table_of_cells(title: str, rows: Sequence[Sequence[tuple[str, str]]]) -> Table:
    """`table_of` for at least one row in which each cell stands beside its column's header."""
    header = [name for name, _ in rows[0]]
    return table_of(title, header, ([cell for _, cell in row] for row in rows))


def show(tables: Iterable[Table]) -> None:
    """Print the tables on standard output."""
    console = Console(highlight=False)
    for table in tables:
        console.print(table)


def markdown(table: Table) -> list[str]:
    """A table of `table_of` as Markdown lines."""
    columns = [list(map(str, column.cells)) for column in table.columns]
    header = [str(column.header) for column in table.columns]
    return markdown_table(header, zip(*columns, strict=True))


def markdown_table(
    header: Sequence[str], lines: Iterable[Sequence[str]], names: int | None = None
) -> list[str]:
    """A table as Markdown lines.

    Args:
        names: so many columns stand on the left, and those after them, figures, on the right; None:
            all on the left.
    """
    left = len(header) if names is None else names
    marks = ["---"] * left + ["---:"] * (len(header) - left)
    return [_row(header), _row(marks), *(_row(map(_escaped, line)) for line in lines)]


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def left_out(sentences: Sequence[str]) -> list[str]:
    """What of the input was passed over, and why, as Markdown lines; none for nothing."""
    if not sentences:
        return []
    return [f"Left out: {len(sentences)}.", "", *(f"- {_escaped(s)}" for s in sentences), ""]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def number(value: float | None, places: int, factor: float = 1) -> str:
    """A figure times `factor` for a cell; nothing where there is none."""
    return "" if value is None else f"{value * factor:.{places}f}"
