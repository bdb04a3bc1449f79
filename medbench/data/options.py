"""What the options of all layouts share."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class Options(BaseModel):
    """The options of a layout: unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _inside(value: str) -> str:
    path = PurePosixPath(value)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in value:
        raise ValueError(f"should be a path below the folder, without '..', is {value!r}")
    return value


#: A path that stays below the folder it is relative to.
Inside = Annotated[str, AfterValidator(_inside)]
