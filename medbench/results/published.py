"""Published figures: `results/paper/*.yaml`, one file a table, with the source of each figure.

`load_published("T2")` is what tables that set published figures beside ours read. The keys of rows are names of our
methods where we have them, those of columns `task.metric`. A figure that is not known is null and says why; it is
never zero and never left out.

A *rule* says as data how a figure follows from others, which it names: `row/column` is a cell, a bare name a figure of
the text, `T1:row/column` a cell of another file; in the rule of a column, which holds for each of its cells, columns of
the same row. `medbench audit` (`medbench.results.audit`) recomputes them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medbench.catalog import packaged, read_yaml
from medbench.data.card import validated
from medbench.errors import RequestError, did_you_mean
from medbench.results.published_schema import Alternative, Column, Figure, Level, Reading, Row, Rule, TableFile


@dataclass(frozen=True)
class Cell:
    """One published figure.

    Attributes:
        table, name: where it stands: `T2`, and `lora/average` or the name of a figure of the text.
        value: in `unit`; None where it is not known.
        decimals: how many are printed.
        source: letters of `Published.sources`.
        reason: why it is not known; None where it is.
        bound: `above` or `about`, where that is all that is said.
        rule: how it follows from others; None for a figure that is given.
        gives: what the rule gives where that is not what is printed.
        why: why it is not, or what should be known about it.
        readings: other ways to read it.
        alternatives: the values that it may have, for one that is not printed.
    """

    table: str
    name: str
    title: str
    value: float | None
    unit: str
    decimals: int
    source: str
    confidence: Level
    reason: str | None
    bound: str | None
    rule: Rule | None
    gives: float | None
    why: str | None
    readings: tuple[Reading, ...]
    alternatives: tuple[Alternative, ...]

    def text(self) -> str:
        """The figure as printed, without its unit: `58.83`, `> 50`, `50.08 or 54.10`; `-` where it is not known."""
        if self.value is not None:
            return {None: "", "above": "> ", "about": "~"}[self.bound] + f"{self.value:.{self.decimals}f}"
        return " or ".join(f"{other.value:.{self.decimals}f}" for other in self.alternatives) or "-"


@dataclass(frozen=True)
class Published:
    """A published table, and figures of the text around it.

    Attributes:
        rows, columns: by key, in the order of the file.
        figures: by name.
        sources: what the letters of a cell's source stand for.
        caveats: what a reader must know before setting these figures beside others.
        statements: what is claimed without a figure.
    """

    name: str
    title: str
    rows: dict[str, Row]
    columns: dict[str, Column]
    figures: dict[str, Cell]
    cells: dict[str, Cell]
    sources: dict[str, str]
    caveats: tuple[str, ...]
    statements: tuple[str, ...]

    def cell(self, row: str, column: str) -> Cell:
        """The figure of a row and column; one that is not known has the value None.

        Raises:
            RequestError: no such row or column; with near matches.
        """
        for kind, key, known in (("row", row, self.rows), ("column", column, self.columns)):
            if key not in known:
                raise RequestError(f"{self.name} has no {kind} {key!r}; {did_you_mean(key, known)}")
        return self.cells[f"{row}/{column}"]

    def find(self, reference: str) -> Cell:
        """What a rule names, in this table: `row/column`, or the name of a figure.

        Raises:
            RequestError: there is none.
        """
        row, slash, column = reference.partition("/")
        if slash:
            return self.cell(row, column)
        if reference not in self.figures:
            raise RequestError(f"{self.name} has no figure {reference!r}; {did_you_mean(reference, self.figures)}")
        return self.figures[reference]

    def rows_of(self, method: str) -> list[str]:
        """The keys of the rows that are one of our methods (several, where it stands there at several ranks)."""
        return [key for key, row in self.rows.items() if row.method == method]

    def column_of(self, task: str, metric: str) -> str | None:
        """The key of the column of a task's metric; None where nothing is published."""
        return next((key for key, about in self.columns.items() if (about.task, about.metric) == (task, metric)), None)

    def text(self) -> str:
        """Title, caveats, statements and sources, as lines to stand below a table."""
        letters = [f"{letter}: {about}" for letter, about in self.sources.items()]
        lines = [f"{self.name}, as published: {self.title}.", *(f"- {line}" for line in self.caveats)]
        lines += [f"- Said without a figure: {line}" for line in self.statements]
        return "\n".join([*lines, f"Sources: {'; '.join(letters)}."])


def published_names(folder: Path | None = None) -> list[str]:
    """The names of the published tables."""
    return sorted(path.stem for path in (folder or packaged("results/paper")).glob("*.yaml"))


def load_published(name: str, folder: Path | None = None) -> Published:
    """A published table by name (`T1` to `T7`, `ancestor`, `mmed_rag`, ...).

    Args:
        name: the file's name without `.yaml`.
        folder: where the files lie; by default what this package carries.

    Raises:
        RequestError: no such table, or a file that is wrong: names file, field and what would be right.
    """
    folder = folder or packaged("results/paper")
    table = _read(name, folder)
    _check_rules(table, folder / f"{name}.yaml", lambda other: _read(other, folder))
    return table


def _read(name: str, folder: Path) -> Published:
    """A table without the check of what its rules name."""
    if name not in (known := published_names(folder)):
        raise RequestError(f"no published table {name!r} in {folder}; {did_you_mean(name, known)}")
    path = folder / f"{name}.yaml"
    file = validated(TableFile, read_yaml(path), path)
    if file.table != name:
        raise RequestError(f"{path}: table: is {file.table!r} but the file is named {name!r}; make them equal")
    try:
        cells: dict[str, Cell] = {}
        for key, row in file.rows.items():
            for column in row.cells:
                if column not in file.columns:
                    raise ValueError(f"rows.{key}.cells: no column {column!r}; {did_you_mean(column, file.columns)}")
            cells |= {f"{key}/{column}": _cell(file, key, column) for column in file.columns}
        figures = {key: _text_figure(file, key, figure) for key, figure in file.figures.items()}
    except ValueError as error:
        raise RequestError(f"{path}: {error}") from error
    about = (file.sources, file.caveats, file.statements)
    return Published(name, file.title, file.rows, file.columns, figures, cells, *about)


def _cell(file: TableFile, key: str, name: str) -> Cell:
    row, column = file.rows[key], file.columns[name]
    figure = row.cells.get(name, Figure(value=None))
    rule = figure.rule
    if rule is None and column.rule is not None and figure.value is not None:
        own = [f"{key}/{other}" for other in column.rule.inputs]
        rule = Rule.model_validate({column.rule.kind: own[0] if column.rule.kind == "same_as" else own})
    title = figure.title or f"{row.title}, {column.title}"
    defaults = (figure.unit or column.unit, column.decimals, row.source or file.source)
    return _resolved(file, f"{key}/{name}", figure, title, *defaults, row.confidence or file.confidence, rule)


def _text_figure(file: TableFile, key: str, figure: Figure) -> Cell:
    if figure.title is None or figure.unit is None or figure.decimals is None:
        raise ValueError(f"figures.{key}: needs title, unit and decimals")
    about = (figure.title, figure.unit, figure.decimals, file.source, file.confidence)
    return _resolved(file, key, figure, *about, figure.rule)


def _resolved(
    file: TableFile,
    name: str,
    figure: Figure,
    title: str,
    unit: str,
    decimals: int,
    source: str,
    confidence: Level,
    rule: Rule | None,
) -> Cell:
    """A figure with what it leaves out; a `ValueError` where what is left does not make sense."""
    decimals = decimals if figure.decimals is None else figure.decimals
    source = figure.source or source
    for letter in source.split(", "):
        if letter not in file.sources:
            raise ValueError(f"{name}: source {letter!r} is not spelled out; {did_you_mean(letter, file.sources)}")
    if figure.gives is not None and rule is None:
        raise ValueError(f"{name}: says what its rule gives but has no rule; add 'rule' or remove 'gives'")
    reason = None
    if figure.value is None:
        reason = figure.reason or file.unknown
        if reason is None:
            raise ValueError(f"{name}: is null without a reason; add 'reason', or 'unknown' for the whole file")
    for value in (figure.value, *(other.value for other in figure.alternatives)):
        if value is not None and round(value, decimals) != value:
            raise ValueError(f"{name}: {value} has more than the {decimals} decimals that are printed")
    return Cell(
        file.table,
        name,
        title,
        figure.value,
        unit,
        decimals,
        source,
        figure.confidence or confidence,
        reason,
        figure.bound,
        rule,
        figure.gives,
        figure.why,
        figure.readings,
        figure.alternatives,
    )


def _check_rules(table: Published, path: Path, other: Callable[[str], Published]) -> None:
    """Refuses rules that name what is not there, in this table or another."""
    for cell in (*table.cells.values(), *table.figures.values()):
        rules = [(cell.name, cell.rule), *((f"{cell.name} ({r.reading})", r.rule) for r in _further(cell))]
        for name, rule in rules:
            for reference in rule.inputs if rule else ():
                try:
                    resolve(table, reference, other)
                except RequestError as error:
                    raise RequestError(f"{path}: {name}: rule: {error}") from error


def _further(cell: Cell) -> tuple[Reading, ...]:
    return (*cell.readings, *cell.alternatives)


def resolve(table: Published, reference: str, other: Callable[[str], Published]) -> Cell:
    """The figure that a rule of `table` names; `other` gives the tables that a reference like `T1:row/column` is in."""
    name, colon, rest = reference.partition(":")
    return other(name).find(rest) if colon else table.find(reference)
