"""A run to be done, and the data it was found to have: what the steps hand to one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medbench.backbones.registry import Backbone
from medbench.data.card import Card
from medbench.data.check import Checked
from medbench.files import read_json, write_json
from medbench.spec import DataSpec, RunSpec

if TYPE_CHECKING:
    from medbench.catalog import Settings
    from medbench.plan import Plan


@dataclass(frozen=True)
class Job:
    """A run to be done.

    Attributes:
        spec: what.
        cards: its tasks, by name.
        backbone: its backbone.
        folder: `<out>/<identity>`.
        data_root: where local data lies.
        device: `auto`, or as torch names it.
        report_to: experiment trackers.
        adapter: the folder of an adapter that was trained elsewhere (`--adapter`).
        command: the request in words, for the record.
        svd_cache: where decompositions of weights are kept; None keeps none. No part of what the run is.
        cache_gb: what each of the two caches may take (GiB).
        protocol: as the request asked for it; asked for zero-shot, a tested image that is trained on is refused.
        embedding_cache: where embeddings of frozen towers are kept; None keeps none. No part of what the run is.
    """

    spec: RunSpec
    cards: dict[str, Card]
    backbone: Backbone
    folder: Path
    data_root: Path | None = None
    device: str = "auto"
    report_to: tuple[str, ...] = ()
    adapter: Path | None = None
    command: str = ""
    svd_cache: Path | None = None
    embedding_cache: Path | None = None
    cache_gb: float = 20.0
    protocol: str | None = None

    def step(self, name: str) -> dict[str, Any] | None:
        """What a finished step left (`data`, `fit`, `predict`), or None."""
        path = self.folder / f"{name}.json"
        return read_json(path) if path.exists() else None

    def finish(self, name: str, content: dict[str, Any]) -> dict[str, Any]:
        """Marks a step as finished, after its artefact."""
        write_json(self.folder / f"{name}.json", content)
        return content


@dataclass(frozen=True)
class Data:
    """The checked splits of a run, and what the record says about them and about the leaks between them."""

    splits: dict[tuple[str, str], Checked]
    about: dict[str, Any]
    leaks: list[dict[str, Any]] = field(default_factory=list)

    def items(self, spec: DataSpec) -> Checked:
        """The items a spec names, limits applied."""
        return self.splits[spec.task, spec.split]


def jobs_of(
    plan: Plan,
    settings: Settings,
    out: Path,
    data_root: Path | None = None,
    device: str = "auto",
    report_to: Sequence[str] = (),
    command: str = "",
) -> list[Job]:
    """The jobs of a plan, each with its folder `<out>/<identity>`; the caches are those of the settings."""
    return [
        Job(
            spec,
            plan.cards,
            plan.backbone,
            out / spec.identity,
            data_root,
            device,
            tuple(report_to),
            plan.adapter,
            command,
            settings.svd_cache,
            settings.embedding_cache,
            settings.cache_gb,
            plan.protocol,
        )
        for spec in plan.specs
    ]
