"""What a file of `results/paper` may say: a table of published figures, and the rules of derived ones (as data)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from medbench.backbones.registry import backbone_names
from medbench.catalog import packaged
from medbench.errors import did_you_mean

Unit = Literal["percent", "points", "points or percent", "times", "GB", "minutes"]
Level = Literal["high", "medium", "low"]
Number = Annotated[float, Field(strict=True)]
Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
Pair = tuple[Text, Text]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Parameters(_Strict):
    """A method's trainable parameters on an architecture, in percent.

    Attributes:
        architecture: a backbone with a shipped layer table.
        method: a method of this package.
        rank: total rank; null for methods without one.
        counting: `published`, by the formulas of the papers, or `exact`, over the layer table.
        denominator: what they are a share of: the papers' own number, all of the model, its adapted tower, or a number.
    """

    architecture: str
    method: str
    rank: Annotated[int, Field(gt=0)] | None = None
    counting: Literal["published", "exact"] = "published"
    denominator: Literal["published", "model", "tower"] | Annotated[int, Field(gt=0)] = "published"

    @model_validator(mode="after")
    def _known(self) -> Self:
        methods = [path.stem for path in packaged("baselines").glob("*.yaml")]
        for name, known in ((self.architecture, backbone_names()), (self.method, methods)):
            if name not in known:
                raise ValueError(f"unknown {name!r}; {did_you_mean(name, known)}")
        return self


class Rule(_Strict):
    """How a figure follows from others, by exactly one of these.

    Attributes:
        mean: the plain mean.
        difference: a - b.
        ratio: a / b.
        percentage: 100 a / b.
        relative_change: 100 (a - b) / b.
        before_relative_change: a / (1 + b / 100), what a was before it grew by b percent.
        same_as: that figure itself.
        parameters: counted from an architecture.
    """

    mean: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None
    difference: Pair | None = None
    ratio: Pair | None = None
    percentage: Pair | None = None
    relative_change: Pair | None = None
    before_relative_change: Pair | None = None
    same_as: Text | None = None
    parameters: Parameters | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if len(self.model_fields_set) != 1 or self.value is None:
            raise ValueError(f"a rule is exactly one of {', '.join(type(self).model_fields)}")
        return self

    @property
    def kind(self) -> str:
        """Which one it is."""
        return next(iter(self.model_fields_set))

    @property
    def value(self) -> Any:
        """What it is computed from."""
        return getattr(self, self.kind)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The figures that it names."""
        if self.kind == "parameters":
            return ()
        return (self.value,) if self.kind == "same_as" else self.value


class _Explained(_Strict):
    """A rule, and for one that does not hold what it gives instead and why."""

    gives: Number | None = None
    why: Text | None = None

    @model_validator(mode="after")
    def _both(self) -> Self:
        if self.gives is not None and self.why is None:
            raise ValueError("says what its rule gives but not why that is not what is printed; add 'why'")
        return self


class Reading(_Explained):
    """Another way to read a figure as printed: `rule` is what it would then be."""

    reading: Text
    rule: Rule


class Alternative(Reading):
    """One of the values that a figure which is not printed can have."""

    value: Number


class Figure(_Explained):
    """A figure as a file gives it; what it leaves out is its row's, column's or file's."""

    value: Number | None
    title: Text | None = None
    unit: Unit | None = None
    decimals: Annotated[int, Field(ge=0, le=6)] | None = None
    source: Text | None = None
    confidence: Level | None = None
    bound: Literal["above", "about"] | None = None
    reason: Text | None = None
    rule: Rule | None = None
    readings: tuple[Reading, ...] = ()
    alternatives: tuple[Alternative, ...] = ()

    @model_validator(mode="after")
    def _null_or_not(self) -> Self:
        if self.value is None and (self.rule or self.readings or self.bound):
            raise ValueError("is null but has a rule, a reading or a bound, which are for figures with a value")
        if self.value is not None and (self.reason or self.alternatives):
            raise ValueError(
                "has a value and a reason or alternatives, which are for null ones ('why' explains a rule)"
            )
        return self


class Column(_Strict):
    """A column: a figure of a task, or of a method as a whole; `rule` holds for each of its cells."""

    title: Text
    unit: Unit
    decimals: Annotated[int, Field(ge=0, le=6)]
    task: str | None = None
    metric: str | None = None
    settings: dict[str, Any] = {}
    rule: Rule | None = None

    @model_validator(mode="after")
    def _names_columns(self) -> Self:
        if self.rule is not None and self.rule.kind == "parameters":
            raise ValueError("a column's rule names columns; 'parameters' is for a cell")
        return self


class Row(_Strict):
    """A row: `method` is ours, `rank` its total rank there, `settings` fields of a RunSpec that make it this row."""

    title: Text
    method: str | None = None
    rank: int | None = None
    settings: dict[str, Any] = {}
    source: Text | None = None
    confidence: Level | None = None
    cells: dict[str, Figure]

    @field_validator("cells", mode="before")
    @classmethod
    def _bare_numbers(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: cell if isinstance(cell, dict) else {"value": cell} for key, cell in value.items()}


class TableFile(_Strict):
    """A file: `source` and `confidence` hold for figures without their own, `unknown` is why cells are left out."""

    table: Name
    title: Text
    sources: dict[str, Text]
    source: Text
    confidence: Level
    unknown: Text | None = None
    caveats: Annotated[tuple[Text, ...], Field(min_length=1)]
    statements: tuple[Text, ...] = ()
    columns: dict[Name, Column] = {}
    rows: dict[Name, Row] = {}
    figures: dict[Name, Figure] = {}
