"""Where claims find their runs: the grids and studies of a scale, and folders with finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medbench.catalog import Catalog, packaged
from medbench.errors import RequestError, did_you_mean
from medbench.grid import Grid
from medbench.reproduce_plan import SCALES, Part, plan_reproduction, searched
from medbench.reproduce_studies import study_folder
from medbench.results.arms import Arm, Scores, arms_of
from medbench.results.claim_schema import Claim
from medbench.results.record import is_finished
from medbench.sweep import Sweep, plan_sweep


class Workplace:
    """Where claims find their rows: grids of a scale, resolved once, and folders with finished runs."""

    def __init__(
        self,
        paths: Sequence[Path],
        scale: str,
        catalog: Catalog,
        data_root: Path | None,
        seeds: Sequence[int] | None = None,
        beside: Path | None = None,
    ):
        """Args: as `medbench.results.claims.judge_claims`; `beside` is where a claim's own grids lie."""
        if scale not in SCALES:
            raise RequestError(f"--scale {scale!r}: {did_you_mean(scale, SCALES)}")
        for path in paths:
            if not path.is_dir():
                raise RequestError(f"{path}: no such folder")
        self.paths, self.scale, self.catalog, self.data_root = list(paths), scale, catalog, data_root
        self.seeds, self.beside = seeds, beside
        self.folders = [folder for path in paths for folder in searched(path)]
        self._sweeps: dict[str, Sweep] = {}

    def command(self, table: str, claim: Claim) -> str:
        """What does the runs of a claim, with as many seeds as it asks for."""
        names = self.grids(claim)
        planned = [self._sweeps[name].seeds for name in names if name in self._sweeps]
        few = self.seeds is not None or min(map(len, planned), default=0) < claim.seeds
        seeds = ",".join(map(str, self.seeds if self.seeds is not None else range(claim.seeds)))
        asked = f" --seeds {seeds}" if few else ""
        if not claim.runs or any(name.endswith(".yaml") and not self._own(name) for name in names):
            return f"medbench reproduce {table} --scale {self.scale}{asked if claim.runs else ''}"
        each = [f"medbench sweep {self._own(name) or name}{asked}" for name in names]
        return " && ".join(each) or "nothing: it has no grid at this scale"

    def _own(self, name: str) -> Path | None:
        """The file of a grid that lies beside the claims."""
        path = self.beside / name if self.beside and name.endswith(".yaml") else None
        return path if path and path.is_file() else None

    def arms(self, claim: Claim) -> tuple[list[Arm], Scores]:
        """A claim's rows and the scores of their finished runs.

        Raises:
            RequestError: no grid at this scale, or one that needs data which is not there.
        """
        names = self.grids(claim)
        if not names:
            raise RequestError(f"no grid at scale {self.scale}")
        if self.scale == "full" and self.data_root is None:
            raise RequestError("its grids need local data: pass --data-root")
        for name in names:
            if name not in self._sweeps:
                self._sweeps[name] = plan_sweep(self.grid(name), self.catalog, self.data_root, self.seeds)
        arms = [arm for arm in arms_of([self._sweeps[name] for name in names]) if arm.runs]
        every = {spec.identity for arm in arms for specs in arm.runs.values() for spec in specs}
        found = {identity: folder for identity in every if (folder := self._folder(identity)) is not None}
        return [arm for arm in arms if arm.fits(claim.among)], Scores(found)

    def grid(self, name: str) -> Grid:
        """A grid that a claim names.

        Raises:
            RequestError: there is none, or it is wrong.
        """
        packed = packaged("baselines/reproduce") / name if name.endswith(".yaml") else name
        return self.catalog.grid(str(self._own(name) or packed))

    def grids(self, claim: Claim) -> list[str]:
        """The grids of a claim at this scale."""
        return next((names for scale, names in claim.runs.items() if scale == self.scale), [])

    def _folder(self, identity: str) -> Path | None:
        return next((folder / identity for folder in self.folders if is_finished(folder / identity)), None)

    def studies(self, table: str, kind: str) -> list[tuple[Part, Path | None, str]]:
        """The studies of a table: with the folder of their runs, or None and why there is none.

        Raises:
            RequestError: they need data that is not there.
        """
        first, *others = self.paths
        found = plan_reproduction(
            table, self.scale, self.catalog, first, self.data_root, seeds=self.seeds, places=others
        )
        each: list[tuple[Part, Path | None, str]] = []
        for part in found.parts:
            if part.kind == kind:
                try:
                    each.append((part, study_folder(part, found), ""))
                except RequestError as error:
                    each.append((part, None, str(error)))
        return each
