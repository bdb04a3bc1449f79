"""What the tests of scoring and importing share: the command line in this process, and answers to the toy set."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import Toy

from medbench.__main__ import main
from medbench.catalog import Catalog
from medbench.data.item import Item
from medbench.data.load import load_items


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Call = Callable[..., Result]


def caller(capfd: pytest.CaptureFixture[str]) -> Call:
    """`medbench WORDS` in this process."""

    def run(*words: object) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as done:
            main([str(word) for word in words])
        out, err = capfd.readouterr()
        assert isinstance(done.value.code, int)
        return Result(done.value.code, out, err)

    return run


def items_of(toy: Toy) -> list[Item]:
    return list(load_items(Catalog().task(str(toy.card)), "test", toy.root).items)


def said_by_gold(toy: Toy) -> list[dict[str, Any]]:
    """The answers of a system that is always right, its ids now text and now numbers."""
    items = items_of(toy)
    return [{"id": item.id if n % 2 else int(item.id), "prediction": item.answer} for n, item in enumerate(items)]


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
