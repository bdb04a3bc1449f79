"""`medbench audit`: what does not add up is found and explained; a changed figure, rule or explanation fails it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from medbench.__main__ import main
from medbench.catalog import packaged
from medbench.errors import RequestError
from medbench.results.audit import Check, agrees, audit_published, audit_text, parameter_percentage
from medbench.results.published_schema import Parameters

FOLDER = packaged("results/paper")
Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def checks() -> list[Check]:
    return audit_published()


def find(checks: list[Check], table: str, figure: str, reading: str = "") -> Check:
    (found,) = [c for c in checks if (c.table, c.figure) == (table, figure) and reading in (c.reading or "-plain")]
    return found


# Recomputed by hand (percent unless said): H = 768, L = 12, and 88,715,520 parameters.
HAND = [
    ("T1", "none/average", "plain", "holds", (61.8 + 27.2 + 64.7 + 36.7 + 60.5 + 33.4 + 60.8) / 7),
    ("T1", "healthgpt_l14/average", "plain", "holds", 63.0857),
    ("T1", "spectral_moe/average", "plain", "holds", 68.2143),
    ("T1", "llava_med/average", "plain", "holds", 45.0),
    ("T1", "med_flamingo/average", "plain", "holds", 38.6),
    ("T1", "gain_over_qwen", "plain", "holds", 18.9),
    ("T1", "gain_over_qwen", "relative", "does not hold", 100 * 18.9 / 49.3),
    ("T2", "lora/params", "plain", "holds", 100 * 18 * 768 * 32 * 12 / 88_715_520),
    ("T2", "lora/params", "rank of the routed rows, 8", "does not hold", 1.4959),
    ("T2", "spectral_moe/params", "plain", "holds", 100 * (18 * 8 + 9 * 8) * 768 * 12 / 88_715_520),
    ("T2", "spectral_moe/params", "32", "does not hold", 100 * (18 * 32 + 9 * 8) * 768 * 12 / 88_715_520),
    ("T2", "full_ft_moe/params", "plain", "does not hold", 770.92),
    ("T2", "share_of_full_ft_moe", "plain", "does not hold", 100 * 58.83 / 61.72),
    ("T2", "fewer_parameters", "plain", "holds", 760 / 2.24),
    ("T2", "fewer_parameters", "against full FT", "does not hold", 100 / 2.24),
    ("T2", "gain_over_lora", "plain", "holds", 3.38),
    ("T2", "pissa/average", "points", "holds", 50.08),
    ("T2", "pissa/average", "relative", "holds", 58.83 / 1.0875),
    ("T2", "hydralora/average", "points", "holds", 53.99),
    ("T2", "hydralora/average", "relative", "holds", 58.83 / 1.0484),
    ("T2", "spectral_moe/average", "plain", "cannot be checked", None),
    ("T2", "gain_over_pissa", "plain", "cannot be checked", None),
    ("T3", "spectral/average", "plain", "holds", 68.2),
    ("T6", "larger_share", "plain", "holds", 100 * (139 / 12 * 32 + 20 / 3 * 8) * 4096 * 32 / 5.8e9),
    ("T6", "larger_share", "Qwen2.5-VL-7B", "does not hold", 1.0830),
    ("T6", "smaller_share", "plain", "holds", 100 * 139 / 12 * 32 * 4096 * 32 / 5.8e9),
    ("T6", "smaller_share", "Qwen2.5-VL-7B", "does not hold", 0.9737),
    ("T7", "gain_from_64_to_128", "plain", "cannot be checked", None),
    ("ancestor", "full_ft_moe/params", "plain", "does not hold", 770.92),
    ("ancestor", "adamole/params", "plain", "does not hold", 100 * (18 * 8 + 9 * 9) * 768 * 12 / 88_715_520),
    ("ancestor_ablation", "zero/average_without_scaling", "plain", "holds", 80.26),
]


@pytest.mark.parametrize(("table", "figure", "reading", "verdict", "value"), HAND, ids=[f"{h[1]}-{h[2]}" for h in HAND])
def test_figures_recomputed_by_hand(
    checks: list[Check], table: str, figure: str, reading: str, verdict: str, value: float | None
) -> None:
    check = find(checks, table, figure, reading)
    assert check.verdict == verdict
    # The constants of full-FT MoE and of Qwen are printed here to four digits.
    assert check.recomputed == (None if value is None else pytest.approx(value, rel=5e-5))


def test_the_packaged_tables_pass_and_say_why(checks: list[Check]) -> None:
    assert [check for check in checks if check.failure] == []
    for check in checks:
        assert check.why or check.verdict == "holds", check.figure
        if check.why and "cut off" in check.why:
            assert check.cut_off, check.figure
    text = audit_text(checks)
    assert "all of them explained" in text
    for verdict in ("holds", "does not hold", "cannot be checked"):
        assert any(line.startswith(verdict) for line in text.splitlines())


@pytest.mark.parametrize(
    ("table", "figure", "reading", "words"),
    [
        ("T2", "spectral_moe/params", "32", ("total rank 8", "rank 32")),
        ("T2", "fewer_parameters", "against full FT", ("44.6", "against full-FT MoE")),
        ("T2", "full_ft_moe/params", "plain", ("not what the formula gives", "770")),
        ("T6", "smaller_share", "Qwen", ("Llama-2-7B", "0.974")),
        ("T6", "larger_share", "Qwen", ("Llama-2-7B", "1.083")),
        ("T1", "gain_over_qwen", "relative", ("points, not relative",)),
        ("T2", "gain_over_pissa", "plain", ("points or relative",)),
        ("T2", "share_of_full_ft_moe", "plain", ("95.318",)),
    ],
)
def test_the_findings_are_explained(
    checks: list[Check], table: str, figure: str, reading: str, words: tuple[str, ...]
) -> None:
    check = find(checks, table, figure, reading)
    assert check.verdict != "holds"
    assert all(word in (check.why or "") for word in words)


def test_rounding_may_go_either_way_at_a_half_and_no_further() -> None:
    assert agrees(1.25, 1.2, 1) and agrees(1.25, 1.3, 1)
    assert not agrees(1.2501, 1.2, 1)
    assert agrees(770.9, 771, 0) and not agrees(770.9, 770, 0)


def change_in(folder: Path, name: str, change: Change) -> Path:
    path = folder / f"{name}.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


def _cell(row: str, column: str, value: Any) -> Change:
    return lambda content: content["rows"][row]["cells"].__setitem__(column, value)


def _figure(name: str, **fields: Any) -> Change:
    return lambda content: content["figures"][name].update(fields)


def _moe(**fields: Any) -> Change:
    return lambda content: content["rows"]["full_ft_moe"]["cells"]["params"].update(fields)


@pytest.mark.parametrize(
    ("name", "change", "broken"),
    [
        ("T1", _cell("none", "slake.open_recall", 76.3), {"T1 none/average"}),
        ("T1", _cell("none", "average", 49.9), {"T1 none/average", "T1 gain_over_qwen"}),
        ("T1", _figure("gain_over_qwen", value=19.0), {"T1 gain_over_qwen"}),
        ("T2", _figure("share_of_full_ft_moe", value=95.32), {"T2 share_of_full_ft_moe"}),  # now holds, said not to
        ("T2", _figure("share_of_full_ft_moe", gives=95.4), {"T2 share_of_full_ft_moe"}),
        ("T2", _moe(value=765), {"T2 fewer_parameters"}),
        ("T2", _moe(gives=769.9), {"T2 full_ft_moe/params"}),
        ("T2", _moe(gives=None, why=None), {"T2 full_ft_moe/params"}),
        (
            "T3",
            _cell("spectral", "average", {"value": 68.4, "rule": {"same_as": "T1:spectral_moe/average"}}),
            {"T3 spectral/average", "T3 change_without_moe"},
        ),
        ("ancestor", _cell("moelora", "average", 80.36), {"ancestor_ablation zero/average_without_scaling"}),
    ],
)
def test_a_changed_figure_fails(tmp_path: Path, name: str, change: Change, broken: set[str]) -> None:
    folder = change_in(shutil.copytree(FOLDER, tmp_path / "paper"), name, change)
    failed = {f"{check.table} {check.figure}" for check in audit_published(folder) if check.failure}
    assert failed == broken


def test_an_input_known_by_its_bound_only_cannot_be_used(tmp_path: Path) -> None:
    rule = {"difference": ["lora/drop", "moelora/drop"]}
    figure = {"title": "x", "value": 30.0, "unit": "points", "decimals": 0, "rule": rule}
    change = lambda content: content.__setitem__("figures", {"between": figure})  # noqa: E731
    folder = change_in(shutil.copytree(FOLDER, tmp_path / "paper"), "T5", change)
    check = find(audit_published(folder), "T5", "between")
    assert (check.verdict, check.recomputed) == ("cannot be checked", None)
    assert "> 50" in (check.why or "")


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"architecture": "biomedclip", "method": "lora"}, "needs a rank"),
        ({"architecture": "biomedclip", "method": "full_ft", "rank": 8}, "has no rank"),
        ({"architecture": "biomedclip", "method": "moelora", "rank": 12}, "no multiple of its 8 experts"),
        ({"architecture": "qwen2.5-vl-7b", "method": "lora", "rank": 32}, "no formula is published"),
        ({"architecture": "qwen2.5-vl-7b", "method": "lora", "rank": 32, "counting": "exact"}, "nothing is known"),
    ],
)
def test_parameters_that_cannot_be_counted_are_an_error(about: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        parameter_percentage(Parameters.model_validate(about))


def test_parameters_over_a_number_of_ones_own() -> None:
    about = {"architecture": "biomedclip", "method": "lora", "rank": 8, "denominator": 1_327_104}
    assert parameter_percentage(Parameters.model_validate(about)) == 100


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `medbench audit ...`."""
    with pytest.raises(SystemExit) as ended:
        main(["audit", *words])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_the_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = command(capsys, "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert set(document) == {"checks", "counts", "failures"}
    assert document["failures"] == 0
    assert sum(document["counts"].values()) == len(document["checks"])
    assert all(document["counts"][verdict] > 0 for verdict in ("holds", "does not hold", "cannot be checked"))
    for check in document["checks"]:
        assert set(check) == set(Check.__dataclass_fields__)
        assert len(check["rule"]) == 1
        assert (check["recomputed"] is None) == (check["verdict"] == "cannot be checked")


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = command(capsys)
    assert (code, err) == (0, "")
    assert "all of them explained" in out

    folder = shutil.copytree(FOLDER, tmp_path / "changed")
    change_in(folder, "T1", _figure("gain_over_qwen", value=19.0))
    code, out, err = command(capsys, "--tables", str(folder))
    assert code == 1
    assert "does not hold (!)" in out
    (line,) = err.splitlines()
    assert line.startswith("medbench: published figure T1 gain_over_qwen is 19.0, its rule gives 18.900")

    (folder / "T1.yaml").write_text("table: T1\ncolour: red\n")
    code, out, err = command(capsys, "--tables", str(folder))
    assert (code, out, len(err.splitlines())) == (2, "", 1)

    code, out, err = command(capsys, "--tables", str(tmp_path / "nowhere"))
    assert (code, out) == (2, "")
    assert "no published tables" in err
