"""Verdicts on effects that the tests plant in made-up runs of the packaged grids: no model, no data."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Cli
from scipy.stats import t as student
from test_reproduce_common import CATALOG, grid_specs, planned, sweep_of, write_runs

from medbench.errors import RequestError, WorkError
from medbench.results import claim_place
from medbench.results.claim_rows import Measured
from medbench.results.claim_schema import Claim, ClaimFile, Line, claim_tables, load_claims
from medbench.results.claim_tests import LineTests, detectable_effect, deviation, needed_items
from medbench.results.claim_text import render_claims
from medbench.results.claims import ClaimVerdict, judge, judge_claims, overall
from medbench.results.published import load_published
from medbench.results.routes import LayerUse, Routes, TaskUse, write_routes
from medbench.scoring.contrasts import Contrast, Term
from medbench.scoring.permutation import holm
from medbench.spec import RunSpec
from medbench.sweep import plan_sweep

FEW = 100
ISSUE = {  # every claim that the project set out to judge
    "spectral_beats_other_initialisations",
    "spectral_without_moe_loses_most",
    "consistent_scaling_helps",
    "two_of_eight_is_best",
    "rank_saturates",
    "no_segment_is_best_everywhere",
    "convergence_is_nearer_to_full_ft",
    "validation_is_nearer_to_full_ft",
    "forgetting_is_ordered",
    "interference_is_smaller",
    "routing_is_consistent_under_shift",
}


@pytest.fixture(autouse=True)
def resolved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grids and tables are resolved once for all tests."""
    monkeypatch.setattr(claim_place, "plan_sweep", lambda grid, catalog, root, seeds: sweep_of(grid.name))


def judged(place: Path, table: str, scale: str = "nano") -> dict[str, ClaimVerdict]:
    place.mkdir(exist_ok=True)
    return {found.claim.id: found for found in judge_claims([place], scale, CATALOG, table, resamples=FEW)}


def spectral(value: float) -> Any:
    """The spectral rows with the mixture are better by some value."""
    return lambda spec, task: (
        value * (spec.method.adapter["init"] == "spectral" and spec.method.adapter["router"] == "topk")
    )


@pytest.fixture(scope="module")
def better(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """T3's runs: spectral starts are right more often, without the mixture as often as any other."""
    place = tmp_path_factory.mktemp("better")
    write_runs(place, grid_specs("initialisation"), spectral(0.2))
    return place


@pytest.fixture(scope="module")
def found(better: Path) -> dict[str, ClaimVerdict]:
    return judged(better, "T3")


def test_every_claim_is_there_with_figures_that_are_published() -> None:
    claims = {claim.id: (table, claim) for table in claim_tables() for claim in load_claims(table).claims}
    assert set(claims) >= ISSUE
    for table, claim in claims.values():
        for line in claim.lines:
            for name in (*line.published.first, *line.published.second) if line.published else ():
                load_published(table).find(name)


def test_a_planted_effect_is_supported_in_every_line_and_its_reverse_contradicted(
    found: dict[str, ClaimVerdict], tmp_path: Path
) -> None:
    claim = found["spectral_beats_other_initialisations"]
    assert claim.verdict == "supported"
    assert all(line.verdict == "supported" and line.seeds == (0, 1) for line in claim.lines)
    assert all(0.1 < line.effect.value < 0.3 for line in claim.lines if line.effect)
    write_runs(tmp_path, grid_specs("initialisation"), spectral(-0.2))
    claim = judged(tmp_path, "T3")["spectral_beats_other_initialisations"]
    assert (claim.verdict, {line.verdict for line in claim.lines}) == ("contradicted", {"contradicted"})
    assert all(line.effect and line.effect.high < 0 for line in claim.lines if line.effect)


def test_what_does_not_differ_is_not_separable_and_one_line_does_not_carry_a_claim(
    found: dict[str, ClaimVerdict],
) -> None:
    claim = found["spectral_without_moe_loses_most"]
    by_name = {line.name: line for line in claim.lines}
    assert by_name["below spectral"].verdict == "supported"
    # Equal answers: nothing to detect with, and no p below one.
    assert {by_name[f"below {init}"].verdict for init in ("principal", "minor", "random", "zero")} == {"not separable"}
    assert by_name["below zero"].p == 1.0
    assert claim.verdict == "not separable"


def test_p_is_corrected_over_all_lines_of_a_table(found: dict[str, ClaimVerdict]) -> None:
    lines = [line for claim in found.values() for line in claim.lines]
    assert len(lines) == 10
    assert [line.p_holm for line in lines] == holm([line.p for line in lines if line.p is not None])


def test_the_scaling_is_judged_by_the_mean_over_the_initialisations(tmp_path: Path) -> None:
    gain = {"principal": 0.3, "minor": 0.2, "random": 0.1, "spectral": 0.0, "zero": -0.1}

    def skill(spec: RunSpec, task: str) -> float:
        return gain[spec.method.adapter["init"]] * (spec.method.adapter["scaling"] == "consistent")

    write_runs(tmp_path, grid_specs("initialisation"), skill)
    (line,) = judged(tmp_path, "T3")["consistent_scaling_helps"].lines
    assert line.effect is not None
    assert line.effect.value == pytest.approx(0.1, abs=0.04)  # the mean of the gains, over which the hardness is even
    assert line.gap == pytest.approx(0.0068)  # 67.56 less 66.88, means of the rows of T3


def test_missing_runs_name_the_command_and_half_written_ones_are_never_averaged(tmp_path: Path) -> None:
    claim = judged(tmp_path, "T3")["spectral_beats_other_initialisations"]
    assert (claim.verdict, claim.command) == ("no runs", "medbench sweep initialisation")
    assert all(line.effect is None and "not run, or not finished" in str(line.reason) for line in claim.lines)
    write_runs(tmp_path, grid_specs("initialisation"), spectral(0.2))
    for spec in grid_specs("initialisation"):
        if spec.method.adapter["init"] == "zero" and spec.seed == 1:
            (tmp_path / spec.identity / "record.json").unlink()
    claims = judged(tmp_path, "T3")
    found = {line.name: line for line in claims["spectral_beats_other_initialisations"].lines}
    assert (found["over zero"].verdict, found["over zero"].seeds) == ("too few seeds", (0,))
    assert found["over zero"].reason == "1 of at least 2 seeds"
    assert found["over zero"].p is None
    assert found["over minor"].verdict == "supported"
    text = render_claims(list(claims.values()))
    assert "1 of at least 2 seeds; `medbench sweep initialisation` does them." in text


def test_a_record_of_another_schema_version_is_one_line(tmp_path: Path) -> None:
    write_runs(tmp_path, grid_specs("initialisation")[:1], spectral(0.2))
    path = next(tmp_path.glob("*/record.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    with pytest.raises(WorkError, match=r"record schema 99, this medbench reads 1"):
        judged(tmp_path, "T3")


def test_the_number_of_items_that_a_published_gap_needs(found: dict[str, ClaimVerdict]) -> None:
    line = found["spectral_beats_other_initialisations"].lines[0]
    assert line.gap == pytest.approx(0.009)  # 68.2 less 67.3
    assert line.effect is not None
    assert line.detectable is not None
    assert line.needed is not None and line.needed > line.effect.n * (line.detectable / line.gap) ** 2 / 4
    z = NormalDist().inv_cdf(1 - 0.05 / 2) + NormalDist().inv_cdf(0.8)

    def needed(gap: float, se_seeds: float = 0.0, alpha: float = 0.05) -> float:
        return needed_items(1000, LineTests(0.5, 0.5, 0.01, se_seeds, 10, 2), gap, alpha)

    assert needed(0.02) == pytest.approx(1000 * (z * 0.01 / 0.02) ** 2, rel=0.002)
    # Half the gap, four times the items; a correction for more lines needs more; items do not mend what the seeds make.
    assert needed(0.01) == pytest.approx(4 * needed(0.02), rel=0.005)
    assert needed(0.02, alpha=0.005) > needed(0.02)
    assert needed(0.02, 0.004) > needed(0.02)
    assert needed(0.02, 0.01) == math.inf
    with pytest.raises(RequestError, match="gap of zero"):
        needed(0.0)


def test_what_is_called_detectable_is_found_in_four_of_five_trials() -> None:
    draws = np.random.default_rng(0)
    for freedom, alpha in ((1, 0.05), (2, 0.003), (10, 0.005)):
        test = LineTests(0.5, 0.5, 0.01, 0.02, freedom, 2)
        effect = detectable_effect(test, alpha)
        assert effect is not None
        measured = draws.normal(effect, math.hypot(0.01, 0.02), 40_000)
        estimated = 0.02 * np.sqrt(draws.chisquare(freedom, 40_000) / freedom)
        by_images = abs(measured) / 0.01 >= NormalDist().inv_cdf(1 - alpha / 2)
        by_seeds = abs(measured) / estimated >= student.isf(alpha / 2, freedom)
        assert (by_images & by_seeds).mean() == pytest.approx(0.8, abs=0.01)


def test_seeds_of_rows_that_lines_share_are_not_counted_twice() -> None:
    """Under no effect, nine lines of shared rows err in one of twenty trials each, as they should."""
    draws = np.random.default_rng(1)
    wrong = np.zeros(9)
    for _ in range(3000):
        rows = draws.normal(0, 1, (7, 2)) + draws.normal(0, 1, 2)  # what a seed does to all rows is in no difference
        names = {f"row {number}": row for number, row in enumerate(rows)}
        pairs = [(3, n) for n in (0, 1, 2, 4)] + [(n, 6) for n in range(5)]
        lines = [
            Measured("line", seeds=(0, 1), levels={"": {f"row {n}": names[f"row {n}"] for n in pair}}) for pair in pairs
        ]
        between = deviation(lines)
        assert between.freedom == 5  # of six rows: one is in no line
        se = math.sqrt(between.variance * 2 / 2)
        effects = np.array([rows[a].mean() - rows[b].mean() for a, b in pairs])
        wrong += 2 * student.sf(abs(effects) / se, between.freedom) <= 0.05
    assert (abs(wrong / 3000 - 0.05) < 0.015).all()


def difference(by_seed: list[float], items: int = 60, row: str = "row") -> Measured:
    """A line of a row over one that gets nothing; all items have the same difference, another one with each seed."""
    values = np.repeat(np.array(by_seed)[:, None], items, axis=1)
    contrast = Contrast((Term("t", 1.0, values, np.arange(items).astype(str)),))
    levels = {"": {row: np.array(by_seed), "nothing": np.zeros(len(by_seed))}}
    return Measured("line", contrast, tuple(range(len(by_seed))), levels=levels)


def test_what_other_seeds_could_have_made_is_no_verdict() -> None:
    steady, shaky = judge([difference([0.10, 0.11])])[0], judge([difference([0.20, 0.01])])[0]
    assert steady.p == shaky.p == pytest.approx(1e-4, abs=1e-4)  # the same images say so
    assert (steady.verdict, shaky.verdict) == ("supported", "not separable")
    # A t test with one degree of freedom; the deviation between two seeds is their distance over the root of two.
    assert shaky.p_seeds == pytest.approx(2 * student.sf(0.105 / (0.19 / math.sqrt(2) / math.sqrt(2)), 1))
    # Beside another row whose seeds agree: two thirds of its squares are left, and two degrees of freedom.
    pooled = judge([difference([0.20, 0.01]), difference([0.1, 0.1], row="other")])[0]
    variance = 2 / 3 * 2 * 0.095**2 / 2
    assert pooled.p_seeds == pytest.approx(2 * student.sf(0.105 / math.sqrt(2 * variance / 2), 2))
    # Not beside a line of another study, nor by the same row again.
    apart = judge([difference([0.20, 0.01]), replace(difference([0.1, 0.1], row="other"), pool="else")])[0]
    again = judge([difference([0.20, 0.01]), difference([0.20, 0.01])])[0]
    assert apart.p_seeds == again.p_seeds == shaky.p_seeds
    # A row counts once, with the most seeds that it has.
    more = {"": {"row": np.array([0.1, 0.2, 0.4]), "nothing": np.zeros(3)}}
    fewer = {"": {name: values[:2] for name, values in more[""].items()}}
    lines = [Measured("a", seeds=(0, 1, 2), levels=more), Measured("b", seeds=(0, 1), levels=fewer)]
    assert deviation(lines) == deviation(lines[:1])
    # A weighted sum of rows varies with the squares of its weights.
    wide = judge([replace(difference([0.20, 0.01]), spread=6.0)])[0]
    assert wide.p_seeds == pytest.approx(2 * student.sf(0.105 / (0.19 / 2 * math.sqrt(3)), 1))


def test_lines_that_are_not_run_count_for_the_correction_and_those_shown_alone_do_not() -> None:
    missing = [Measured("m", lacking="not run")] * 9
    alone = judge([difference([0.10, 0.11])])[0]
    beside = judge([difference([0.10, 0.11]), *missing])[0]
    assert alone.p_holm is not None and beside.p_holm == pytest.approx(10 * alone.p_holm)
    shown = replace(difference([0.3, 0.3]), judged=False)
    found = judge([difference([0.10, 0.11]), shown])
    assert [line.verdict for line in found] == ["supported", "shown alone"]
    assert found[1].p is None and found[1].effect is not None


def test_where_seeds_differ_too_much_the_seeds_that_are_needed_are_named() -> None:
    values = np.tile([0.0, 0.02], 200)[None] + np.array([[-0.01], [0.01]])
    levels = {"": {"row": np.array([0.0, 0.02]), "nothing": np.zeros(2)}}
    contrast = Contrast((Term("t", 1.0, values, np.arange(400).astype(str)),))
    (line,) = judge([Measured("line", contrast, (0, 1), levels=levels)], [0.01])
    z = NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)
    assert line.needed == math.inf
    # As many as a normal deviation would need, and some more since it is estimated.
    least = (z * 0.02 / math.sqrt(2) / 0.01) ** 2
    assert line.needed_seeds is not None and least < line.needed_seeds < least + 4


def test_too_few_clusters_cannot_be_tested_and_nothing_is_called_detectable() -> None:
    (line,) = judge([difference([0.3, 0.3], items=5)])
    assert (line.verdict, line.detectable) == ("cannot be tested", None)
    assert "5 parts" in str(line.reason)
    assert judge([difference([0.3, 0.3], items=6)])[0].verdict == "supported"


def segments(table: dict[str, list[float]]) -> Any:
    """The skill of each of five segments on each set."""
    return lambda spec, task: table[task][round(4 * spec.method.adapter["segment_start"])]


@pytest.mark.parametrize(
    ("table", "verdict"),
    [
        ({"slake": [0.4, 0, 0, 0, -0.4], "vqa_rad": [-0.4, 0, 0, 0, 0.4]}, "supported"),
        ({"slake": [0.3, 0, 0, 0, 0], "vqa_rad": [0.3, 0, 0, 0, 0]}, "contradicted"),
        ({"slake": [0.0] * 5, "vqa_rad": [0.0] * 5}, "not separable"),
        # The first is beaten by none that can be told from it, though it is best on one set alone.
        ({"slake": [0.3, 0, 0, 0, 0], "vqa_rad": [0.1, 0.1, 0.1, 0.1, 0.11]}, "not separable"),
    ],
)
def test_whether_a_segment_is_best_everywhere(tmp_path: Path, table: dict[str, list[float]], verdict: str) -> None:
    write_runs(tmp_path, grid_specs("segment_start"), segments(table))
    assert judged(tmp_path, "T7")["no_segment_is_best_everywhere"].verdict == verdict


def test_the_best_row_and_the_saturation_of_the_rank(tmp_path: Path) -> None:
    def by_rank(spec: RunSpec, task: str) -> float:
        return {8: -0.2, 16: -0.1, 32: 0.0, 64: 0.1, 128: 0.1}[spec.method.adapter["r"]]

    def by_experts(spec: RunSpec, task: str) -> float:
        return 0.2 * ((spec.method.adapter["num_experts"], spec.method.adapter["top_k"]) == (8, 2))

    write_runs(tmp_path, (s for s in grid_specs("nano_T7_rank") if s.method.adapter["r"] != 32), by_rank)
    write_runs(tmp_path, grid_specs("nano_T7_experts"), by_experts)
    found = judged(tmp_path, "T7")
    best = found["two_of_eight_is_best"]
    assert (best.verdict, len(best.lines)) == ("supported", 12)
    verdicts = {line.name: line.verdict for line in found["rank_saturates"].lines}
    assert verdicts == {
        "64 over 8": "supported",
        "gain to 64 over gain to 128": "supported",
        "128 over 64": "shown alone",
    }
    gain = found["rank_saturates"].lines[2]
    assert (gain.gap, gain.needed) == (pytest.approx(0.003), None)  # answers that do not differ detect nothing


def test_curves_are_compared_by_their_distance_to_the_reference(tmp_path: Path) -> None:
    steps = np.linspace(0, 1, 40)
    own = {"full_ft": 3 - 2 * steps, "spectral_moe": 3.1 - 2 * steps, "lora": 3.5 - 2 * steps, "moelora": 3 - 2 * steps}

    def losses(spec: RunSpec) -> list[float]:
        return [float(x) for x in own.get(spec.method.name, own["lora"])]

    write_runs(tmp_path, grid_specs("nano_convergence"), lambda spec, task: 0.0, losses, lambda *_: 0.0)
    lines = judged(tmp_path, "T6")["convergence_is_nearer_to_full_ft"].lines
    assert [line.verdict for line in lines] == ["supported", "contradicted"]
    # |3.5 - 3| less |3.1 - 3| nats, and |3 - 3| less that.
    assert [line.effect.value for line in lines if line.effect] == pytest.approx([0.4, -0.1])


def test_answers_are_nearer_where_fewer_scores_differ(tmp_path: Path) -> None:
    off = {"lora": 0.4, "moelora": 0.3, "spectral_moe": 0.05}
    write_runs(tmp_path, grid_specs("nano_T6"), lambda spec, task: off.get(spec.method.name, 0.0))
    lines = judged(tmp_path, "T6")["answers_are_nearer_to_full_ft"].lines
    assert [line.verdict for line in lines] == ["supported", "supported"]


def test_a_course_is_the_mean_over_the_points_of_the_trace(tmp_path: Path) -> None:
    off = {"lora": 0.4, "moelora": 0.05, "spectral_moe": 0.2}

    def traced(spec: RunSpec, stage: int, task: str) -> float:
        return off.get(spec.method.name, 0.0) if stage else 9.0  # what is not trained yet counts for nothing

    write_runs(tmp_path, grid_specs("nano_convergence"), lambda spec, task: 0.0, traced=traced)
    lines = judged(tmp_path, "T6")["validation_is_nearer_to_full_ft"].lines
    assert [line.verdict for line in lines] == ["supported", "contradicted"]
    folder = next(
        p.parent for p in tmp_path.glob("*/trace.parquet") if '"spectral_moe"' in (p.parent / "spec.json").read_text()
    )
    table = pd.read_parquet(folder / "trace.parquet")
    table.loc[table["stage"] > 0, "epoch"] = 2.0
    table.to_parquet(folder / "trace.parquet")
    again = judged(tmp_path, "T6")["validation_is_nearer_to_full_ft"].lines
    assert {line.verdict for line in again} == {"no runs"} and "same points" in str(again[0].reason)


def routed(experts: list[int], blocks: int) -> TaskUse:
    use = {
        f"model.layers.{n}.q_proj": LayerUse(sum(experts), tuple(experts), tuple(map(float, experts)))
        for n in range(blocks)
    }
    return TaskUse("test", 1, sum(experts), use)


@pytest.mark.parametrize(("blocks", "verdict"), [(28, "supported"), (4, "cannot be tested")])
def test_expert_use_that_stays_the_same_under_shift(tmp_path: Path, blocks: int, verdict: str) -> None:
    specs = grid_specs("nano_routing")
    write_runs(tmp_path, specs, lambda spec, task: 0.0)
    for spec in specs:
        same, near, far = [40, 40, 10, 10], [38, 42, 10, 10], [10, 10, 40, 40]
        shift = near if spec.method.name == "spectral_moe" else far
        kinds = {t: same if t == "phantom_vqa" else shift if "noisy" in t or "low_" in t else far for t in spec.tasks}
        routes = Routes(4, "topk", 2, None, {task: routed(use, blocks) for task, use in kinds.items()})
        write_routes(tmp_path / spec.identity, routes)
    claim = judged(tmp_path, "T5")["routing_is_consistent_under_shift"]
    assert [line.verdict for line in claim.lines] == ["shown alone", verdict]
    assert all(line.unit == "distance" and line.effect and line.effect.n == blocks for line in claim.lines)


def test_forgetting_and_interference_are_read_from_the_studies(tmp_path: Path) -> None:
    lost = {"lora": 0.4, "moelora": 0.2, "spectral_moe": 0.02}
    found = planned("T5", "nano")
    left_out = ("vqa_rad then slake", "busi then kneexray then btmri")
    specs = [s for part in found.parts if part.study and part.name not in left_out for s in part.study.plan.specs]

    def traced(spec: RunSpec, stage: int, task: str) -> float:
        # Each task is at its best after its own stage, and loses to the later ones.
        own = spec.tasks.index(task) + 1
        return -0.3 if stage < own else 0.3 - lost[spec.method.name] * (stage > own)

    def skill(spec: RunSpec, task: str) -> float:
        mixed = spec.stages and len(spec.stages[0].mixture) > 1
        return 0.1 - (0.5 * lost[spec.method.name] if mixed else 0.0)

    write_runs(tmp_path, specs, skill, traced=traced)
    claims = judged(tmp_path, "T5")
    verdicts = {line.name: line.verdict for line in claims["forgetting_is_ordered"].lines}
    assert [v for name, v in verdicts.items() if name.startswith("slake then vqa_rad")] == ["supported"] * 4
    assert [v for name, v in verdicts.items() if name.startswith("vqa_rad then slake")] == ["no runs"] * 4
    assert claims["forgetting_is_ordered"].verdict == "incomplete"
    assert claims["interference_is_smaller"].verdict == "supported"
    points, share = claims["forgetting_is_ordered"].lines[:2]
    assert share.name == f"{points.name}, as a share" and (points.unit, share.unit) == ("points", "percent")
    assert points.gap is None  # published are bounds alone, whose difference says nothing
    assert share.effect and points.effect and (share.effect.value or 0) > (points.effect.value or 0) > 0


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["supported", "supported"], "supported"),
        (["supported", "not separable"], "not separable"),
        (["supported", "contradicted"], "contradicted"),
        (["no runs", "contradicted"], "contradicted"),
        (["no runs", "supported"], "incomplete"),
        (["too few seeds", "too few seeds"], "too few seeds"),
        (["no runs"], "no runs"),
        (["shown alone", "supported"], "supported"),
        (["shown alone", "cannot be tested"], "cannot be tested"),
    ],
)
def test_a_claim_holds_where_all_of_its_lines_do(verdicts: list[str], expected: str) -> None:
    assert overall(verdicts) == expected


def test_claims_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="must add up to zero"):
        Line.model_validate({"name": "x", "sum": [{"weight": 1, "rows": {}}]})
    about = {"id": "x", "text": "t", "source": "s", "runs": {"ci": ["ci_T1"]}}
    with pytest.raises(ValueError, match="needs lines"):
        Claim.model_validate(about)
    with pytest.raises(ValueError, match="needs reference"):
        Claim.model_validate(about | {"kind": "curve", "lines": [{"name": "x"}]})
    with pytest.raises(ValueError, match="scales"):
        ClaimFile.model_validate({"table": "T1", "claims": [about | {"scales": 1}]})


def test_rows_that_no_grid_has_are_an_error_not_a_missing_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medbench.results import claims

    lines = [{"name": "x", "higher": {"adapter.init": "spektral"}, "lower": {"adapter.init": "zero"}}]
    wrong = {"id": "wrong", "text": "t", "source": "s", "runs": {"nano": ["initialisation"]}, "lines": lines}
    file = ClaimFile.model_validate({"table": "T3", "claims": [wrong]})
    monkeypatch.setattr(claims, "load_claims", lambda table: file)
    with pytest.raises(RequestError, match=r"claim wrong: no row of its grids has \{'adapter.init': 'spektral'\}"):
        judged(tmp_path, "T3")


def test_the_command_prints_verdicts_or_one_json_document(better: Path, cli: Cli) -> None:
    done = cli("claims", better, "--table", "T3", "--json")
    assert done.returncode == 0
    claims = {claim["id"]: claim for claim in json.loads(done.stdout)}
    lines = claims["spectral_beats_other_initialisations"]["lines"]
    assert [line["verdict"] for line in lines] == ["supported"] * 4
    assert lines[0]["gap"] == pytest.approx(0.9)  # points
    assert 10 < lines[0]["value"] < 30
    text = cli("claims", better, "--table", "T3").stdout
    assert "## T3 spectral_beats_other_initialisations: supported (4 of 4 lines supported)" in text
    assert cli("claims", better, "--table", "T2").stderr == (
        "medbench: --table T2: no claims of it; known: T3, T5, T6, T7\n"
    )
    assert cli("claims", better / "none").returncode == 2
    assert "did you mean nano" in cli("claims", better, "--scale", "nanno").stderr


def test_claims_of_ones_own_over_a_grid_beside_them(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim_place, "plan_sweep", plan_sweep)
    grid = "name: mine\ndescription: d\nsource: s\nbase: {tasks: phantom_vqa, train_limit: 16, limit: 8}\n"
    (tmp_path / "mine.yaml").write_text(grid + "axes: {method: [lora, spectral_moe]}\nseeds: [0, 1, 2]\n")
    line = "{name: over lora, higher: {method: spectral_moe}, lower: {method: lora}}"
    about = "id: ours, text: t, source: s, runs: {ci: [mine.yaml]}"
    (tmp_path / "claims.yaml").write_text(f"table: T1\nclaims:\n  - {{{about}, lines: [{line}]}}\n")
    specs = [
        spec for cell in plan_sweep(CATALOG.grid(str(tmp_path / "mine.yaml")), CATALOG).cells for spec in cell.specs
    ]
    write_runs(tmp_path / "runs", specs, lambda spec, task: 0.3 * (spec.method.name == "spectral_moe"))
    asked = ("claims", tmp_path / "runs", "--claims", tmp_path / "claims.yaml", "--scale", "ci", "--json")
    (found,) = json.loads(cli(*asked).stdout)
    assert (found["verdict"], found["lines"][0]["seeds"]) == ("supported", [0, 1, 2])
    (few,) = json.loads(cli(*asked, "--seeds", "0,7").stdout)
    assert (few["verdict"], few["lines"][0]["seeds"]) == ("too few seeds", [0])
    assert few["command"] == f"medbench sweep {tmp_path / 'mine.yaml'} --seeds 0,7"
    both = cli(*asked, "--table", "T3")
    assert (both.returncode, both.stderr) == (2, "medbench: --claims is a file of its own: leave --table out\n")
    (tmp_path / "claims.yaml").write_text("table: T1\nclaims: []\n")
    empty = cli(*asked)
    assert empty.returncode == 2 and "claims.yaml: claims" in empty.stderr and empty.stderr.count("\n") == 1


def test_a_scale_with_one_seed_says_how_to_get_more(tmp_path: Path) -> None:
    claim = judged(tmp_path, "T3", "ci")["consistent_scaling_helps"]
    assert claim.command == "medbench sweep ci_initialisation --seeds 0,1"
