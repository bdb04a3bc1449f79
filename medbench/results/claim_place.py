"""Where claims find their runs: the grids and studies of a scale, and folders with finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medbench.catalog import Catalog, packaged
from medbench.errors import RequestError, did_you_mean
from medbench.reproduce_plan import SCALES, Part, plan_reproduction, searched
from medbench.reproduce_studies import study_folder
from medbench.results.arms import Arm, Scores, arms_of
from medbench.results.claim_schema import Claim
from medbench.results.record import is_finished
from medbench.sweep import Sweep, plan_sweep


class Workplace:
    """Where claims find their rows: grids of a scale, resolved once, and folders with finished runs."""

    def __init__(self, paths: Sequence[Path], scale: str, catalog: Catalog, data_root: Path | None):
        """Args: as `medbench.results.claims.judge_claims`."""
        if scale not in SCALES:
            raise RequestError(f"--scale {scale!r}: {did_you_mean(scale, SCALES)}")
        for path in paths:
            if not path.is_dir():
                raise RequestError(f"{path}: no such folder")
        self.paths, self.scale, self.catalog, self.data_root = list(paths), scale, catalog, data_root
        self.folders = [folder for path in paths for folder in searched(path)]
        self._sweeps: dict[str, Sweep] = {}

    def command(self, table: str, claim: Claim) -> str:
        """What does the runs of a claim."""
        names = self._grids(claim)
        if claim.runs and not any(name.endswith(".yaml") for name in names):
            return " && ".join(f"medbench sweep {name}" for name in names) or "nothing: it has no grid at this scale"
        return f"medbench reproduce {table} --scale {self.scale}"

    def arms(self, claim: Claim) -> tuple[list[Arm], Scores]:
        """A claim's rows and the scores of their finished runs.

        Raises:
            RequestError: no grid at this scale, or one that needs data which is not there.
        """
        names = self._grids(claim)
        if not names:
            raise RequestError(f"no grid at scale {self.scale}")
        if self.scale == "full" and self.data_root is None:
            raise RequestError("its grids need local data: pass --data-root")
        for name in names:
            if name not in self._sweeps:
                path = str(packaged("baselines/reproduce") / name) if name.endswith(".yaml") else name
                self._sweeps[name] = plan_sweep(self.catalog.grid(path), self.catalog, self.data_root)
        arms = [arm for arm in arms_of([self._sweeps[name] for name in names]) if arm.runs]
        every = {spec.identity for arm in arms for specs in arm.runs.values() for spec in specs}
        found = {identity: folder for identity in every if (folder := self._folder(identity)) is not None}
        return [arm for arm in arms if arm.fits(claim.among)], Scores(found)

    def _grids(self, claim: Claim) -> list[str]:
        return next((names for scale, names in claim.runs.items() if scale == self.scale), [])

    def _folder(self, identity: str) -> Path | None:
        return next((folder / identity for folder in self.folders if is_finished(folder / identity)), None)

    def studies(self, table: str, kind: str) -> list[tuple[Part, Path | None, str]]:
        """The studies of a table: with the folder of their runs, or None and why there is none.

        Raises:
            RequestError: they need data that is not there.
        """
        found = plan_reproduction(table, self.scale, self.catalog, self.paths[0], self.data_root, places=self.paths[1:])
        each: list[tuple[Part, Path | None, str]] = []
        for part in found.parts:
            if part.kind == kind:
                try:
                    each.append((part, study_folder(part, found), ""))
                except RequestError as error:
                    each.append((part, None, str(error)))
        return each
