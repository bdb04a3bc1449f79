"""The paper's claims as data: `baselines/claims/*.yaml`, one file a table, for people to read and add to.

A claim names rows by their fields, as a grid has them, and says which is higher. It is resolved to the runs of packaged
grids and studies, so what it is judged by is what `sweep` and `reproduce` do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from medbench.catalog import packaged, read_yaml
from medbench.data.card import validated
from medbench.errors import RequestError, did_you_mean
from medbench.reproduce_plan import Scale

_STRICT = ConfigDict(extra="forbid", frozen=True)
Rows = dict[str, Any]
#: `difference`: a weighted sum of rows; `best`: a row against each other one; `no_best`: no row is best on every set;
#: `curve`: losses in training nearer to a reference; `answers`: scores of items nearer to a reference's; `course`: the
#: same at every point of traced runs;
#: `forgetting`, `interference`: studies; `routing`: use of experts on shifted data.
Kind = Literal["difference", "best", "no_best", "curve", "answers", "course", "forgetting", "interference", "routing"]


class Gap(BaseModel):
    """What is published of a line: the mean of `first` less the mean of `second`, cells or figures of a table."""

    model_config = _STRICT

    first: list[str]
    second: list[str] = []


class Weighted(BaseModel):
    """A term of a sum: the mean over the rows that fit, times a weight."""

    model_config = _STRICT

    weight: float
    rows: Rows


class Line(BaseModel):
    """One comparison of a claim; above zero is as claimed.

    Attributes:
        name: in a table.
        higher, lower: the rows of which the first are claimed to be higher (of `curve`, `answers`, `course`: nearer; of
            `forgetting`: to forget less; of `interference`: to lose less to the others).
        sum: instead, a sum of rows whose weights add up to zero.
        tasks: of `routing`, the shifted tasks.
        against: of `routing`, the tasks whose distance is claimed to be larger; none: `lower`'s on the same tasks.
        published: the difference that is published.
        judged: whether the claim stands or falls with it; else it is shown without a verdict.
    """

    model_config = _STRICT

    name: str
    higher: Rows = {}
    lower: Rows = {}
    sum: list[Weighted] = []
    tasks: list[str] = []
    against: list[str] = []
    published: Gap | None = None
    judged: bool = True

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.sum and (self.higher or self.lower):
            raise ValueError(f"line {self.name!r}: give either higher and lower, or sum")
        if self.sum and abs(sum(term.weight for term in self.sum)) > 1e-9:
            raise ValueError(f"line {self.name!r}: the weights of sum must add up to zero")
        return self

    @property
    def terms(self) -> list[Weighted]:
        """The sum that is claimed to be above zero."""
        return self.sum or [Weighted(weight=1.0, rows=self.higher), Weighted(weight=-1.0, rows=self.lower)]


class Claim(BaseModel):
    """A claim.

    Attributes:
        id: its name; text: what is claimed; source: where.
        kind: how it is tested.
        runs: scale -> grids that have its rows; none for studies, which are those of the table.
        among: rows that all its lines are about.
        first: of `best`: the row; of the others: none.
        reference: of `curve`, `answers`, `course`: the row that others come near to.
        metrics: means over items; the mean over them and the tasks is compared.
        seeds: with fewer there is no verdict.
        lines: the comparisons; of `best` and `no_best` they follow from the rows.
        note: what must be known to read it.
    """

    model_config = _STRICT

    id: str
    text: str
    source: str
    kind: Kind = "difference"
    runs: dict[Scale, list[str]] = {}
    among: Rows = {}
    first: Rows = {}
    reference: Rows = {}
    metrics: list[str] = ["closed_accuracy", "open_recall"]
    seeds: Annotated[int, Field(gt=0)] = 2
    lines: list[Line] = []
    note: str = ""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needs = {"best": self.first, "curve": self.reference, "answers": self.reference, "course": self.reference}
        if self.kind in needs and not needs[self.kind]:
            raise ValueError(
                f"claim {self.id}: kind {self.kind} needs {'first' if self.kind == 'best' else 'reference'}"
            )
        if (self.kind in ("best", "no_best")) == bool(self.lines):
            raise ValueError(f"claim {self.id}: kind {self.kind} {'has no' if self.lines else 'needs'} lines")
        if self.kind not in ("forgetting", "interference") and not self.runs:
            raise ValueError(f"claim {self.id}: kind {self.kind} needs runs")
        return self


class ClaimFile(BaseModel):
    """The claims of a table; p is corrected over all of their lines that are judged.

    Attributes:
        table: the paper's table that they are about, or beside (`published` names its figures).
        claims: in order.
        path: the file; grids that end in .yaml are looked for beside it.
    """

    model_config = _STRICT

    table: str
    claims: list[Claim] = Field(min_length=1)
    path: Path = Field(default=Path("claims"), exclude=True)


def claim_tables() -> list[str]:
    """The tables that have claims."""
    return sorted(path.stem for path in packaged("baselines/claims").glob("*.yaml"))


def load_claims(table: str) -> ClaimFile:
    """The claims of a table.

    Raises:
        RequestError: no such table, or a file that is wrong.
    """
    if table not in claim_tables():
        raise RequestError(f"--table {table}: no claims of it; {did_you_mean(table, claim_tables())}")
    path = packaged("baselines/claims") / f"{table}.yaml"
    found = read_claims(path)
    if found.table != table:
        raise RequestError(f"{path}: table: is {found.table!r} but the file is named {table!r}")
    return found


def read_claims(path: Path) -> ClaimFile:
    """The claims of a file, the package's or one's own.

    Raises:
        RequestError: it is not there, or wrong; names the field.
    """
    found = validated(ClaimFile, read_yaml(path) | {"path": path}, path)
    names = [claim.id for claim in found.claims]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise RequestError(f"{path}: claim {twice[0]} is there twice; name one otherwise")
    return found
