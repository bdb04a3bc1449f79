"""A group of tasks: a name for several cards, one YAML file a group in the folder `groups` beside the cards.

A group that lm-evaluation-harness can run is in its own format (`group:`, `task:`). One with members that lm-eval
does not have (classification, cards that are still to come) has `name:` instead of `group:`: lm-eval ignores it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from medbench.data.card import validated
from medbench.errors import RequestError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class About(_Strict):
    """Our fields of a group."""

    version: Annotated[int, Field(ge=1)]
    description: str


class Group(_Strict):
    """A named list of tasks; whether each has a card is for the catalogue to say."""

    group: str | None = None
    own_name: Annotated[str | None, Field(alias="name")] = None
    task: Annotated[tuple[str, ...], Field(min_length=1)]
    metadata: About

    @field_validator("task")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("names a task twice")
        return value

    @model_validator(mode="after")
    def _one_name(self) -> Self:
        if (self.group is None) == (self.own_name is None):
            raise ValueError("should have either 'group' (lm-eval's) or 'name' (ours alone)")
        return self

    @classmethod
    def parse(cls, content: dict[str, Any], path: Path) -> Group:
        """Checks a group's content.

        Raises:
            RequestError: names the file, the field and what would be right.
        """
        found = validated(cls, content, path)
        if found.name != path.stem:
            raise RequestError(f"{path}: the group is named {found.name!r} but the file {path.stem!r}; make them equal")
        return found

    @property
    def name(self) -> str:
        """The group's name."""
        return self.group or self.own_name or ""
