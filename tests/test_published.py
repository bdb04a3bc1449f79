"""The published tables as data: golden values typed from the sources, what must be said of each, and bad files."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from medbench.catalog import Catalog, packaged
from medbench.errors import RequestError
from medbench.results.published import load_published, published_names
from medbench.scoring.kinds import known_names
from medbench.tuners import TUNERS

FOLDER = packaged("results/paper")
NAMES = published_names()
SEVEN = ["T1", "T2", "T3", "T4", "T5", "T6", "T7"]
VQA = ["vqa_rad", "slake", "pathvqa"]

# Typed anew from the sources' tables, row by row, in their order of columns; None where they have nothing.
GOLDEN = {
    ("T1", "none"): [61.8, 27.2, 64.7, 36.7, 60.5, 33.4, 60.8, 49.3],
    ("T1", "healthgpt_l14"): [74.5, 54.5, 71.9, 56.2, 75.2, 42.1, 67.2, 63.1],
    ("T1", "spectral_moe"): [78.8, 59.6, 75.3, 59.9, 84.2, 49.1, 70.6, 68.2],
    ("T1", "llava_med"): [None] * 7 + [45.0],
    ("T1", "med_flamingo"): [None] * 7 + [38.6],
    ("T2", "full_ft"): [100, *[None] * 9, 56.76],
    ("T2", "full_ft_moe"): [760, *[None] * 9, 61.72],
    ("T2", "lora"): [5.98, *[None] * 9, 55.45],
    ("T2", "moelora"): [2.24, *[None] * 9, 55.52],
    ("T2", "pissa"): [1.49, *[None] * 10],
    ("T2", "hydralora"): [1.58, *[None] * 10],
    ("T2", "spectral_moe"): [2.24, *[None] * 7, 77.23, None, 58.83],
    ("T3", "principal"): [67.3, 66.8],
    ("T3", "minor"): [67.4, 66.6],
    ("T3", "random"): [67.6, 66.9],
    ("T3", "spectral"): [68.2, 67.3],
    ("T3", "zero"): [67.3, 66.8],
    ("T3", "spectral_without_moe"): [60.1, None],
    ("T4", "spectral_moe"): [90.33, *[None] * 9, 25.69, None],
    ("T5", "lora"): [50],
    ("T5", "moelora"): [20],
    ("T5", "spectral_moe"): [5],
    ("T6", "first"): [32.56, 29 * 60 + 15, None],
    ("T6", "second"): [32.47, 29 * 60 + 17, None],
    ("T6", "third"): [32.56, 29 * 60 + 19, None],
    ("T7", "rank_8"): [None],
    ("T7", "rank_64"): [None],
    ("T7", "rank_128"): [None],
    ("T7", "experts_2_of_8"): [None],
    ("ancestor", "full_ft"): [100, 82.25],
    ("ancestor", "full_ft_moe"): [770, 84.40],
    ("ancestor", "lora_r8"): [1.49, 77.09],
    ("ancestor", "lora_r16"): [2.99, 79.30],
    ("ancestor", "lora_r32"): [5.98, 80.44],
    ("ancestor", "dora"): [1.49, 77.49],
    ("ancestor", "pissa"): [1.49, 76.85],
    ("ancestor", "milora"): [1.49, 76.68],
    ("ancestor", "moelora"): [2.24, 80.26],
    ("ancestor", "adamole"): [2.33, 79.63],
    ("ancestor", "hydralora"): [1.58, 79.58],
    ("ancestor", "goat"): [2.24, 81.49],
    ("ancestor_ablation", "spectral"): [81.49, 80.35],
    ("ancestor_ablation", "principal"): [81.11, 80.02],
    ("ancestor_ablation", "minor"): [81.14, 80.03],
    ("ancestor_ablation", "random"): [81.22, 80.07],
    ("ancestor_ablation", "zero"): [81.06, 80.26],
    ("ancestor_ablation", "spectral_without_moe"): [None, 77.62],
    ("ancestor_efficiency", "moelora"): [34.85, 36 * 60 + 56],
    ("ancestor_efficiency", "hydralora"): [34.81, 36 * 60 + 56],
    ("ancestor_efficiency", "goat"): [34.85, 36 * 60 + 59],
    ("ancestor_balance", "1e-1"): [49.1, 49.0, 48.5],
    ("ancestor_balance", "1e-2"): [50.5, 49.3, 49.5],
    ("ancestor_balance", "1e-3"): [53.5, 50.8, 48.4],
    ("ancestor_balance", "1e-4"): [51.5, 49.0, 48.5],
    ("ancestor_balance", "0"): [49.9, 48.0, 49.1],
    # yes/no accuracy, F1, AUROC on IU-Xray, then on MIMIC; BLEU, ROUGE-L, METEOR of reports, likewise
    ("mmed_rag", "llava_med_1.5"): [75.47, 64.04, 67.46, 75.79, 80.49, 68.84, 9.64, 12.26, 8.21, 12.11, 13.05, 11.16],
    ("mmed_rag", "dola"): [78.0, 66.75, 72.19, 81.35, 85.73, 72.73, 11.79, 15.82, 12.72, 17.11, 14.89, 14.81],
    ("mmed_rag", "opera"): [70.59, 61.54, 63.22, 69.34, 76.66, 62.46, 10.66, 14.7, 12.01, 15.4, 12.52, 13.72],
    ("mmed_rag", "vcd"): [68.99, 54.35, 61.08, 70.89, 75.57, 64.61, 10.42, 14.14, 11.59, 15.18, 12.3, 13.38],
    ("mmed_rag", "meddr"): [83.33, 67.8, 77.15, 55.16, 56.18, 58.47, 12.37, 16.45, 13.5, 18.59, 15.72, 16.77],
    ("mmed_rag", "factmm_rag"): [84.51, 68.51, 77.07, 77.58, 81.86, 70.09, 14.7, 18.05, 15.92, 18.71, 15.84, 16.82],
    ("mmed_rag", "rule"): [87.84, 78.0, 85.78, 83.92, 87.49, 83.44, 27.53, 23.16, 27.99, 18.61, 15.96, 17.42],
    ("mmed_rag", "mmed_rag"): [89.54, 80.72, 87.13, 83.57, 88.49, 85.08, 31.38, 25.59, 32.43, 23.25, 12.34, 20.47],
    ("mmed_rag", "mcrag"): [90.12, 82.03, 88.25, 84.91, 89.37, 86.42, 35.02, 28.47, 35.18, 25.81, 15.05, 22.34],
}
FIGURES = {
    "T1": {"gain_over_qwen": 18.9, "gain_over_llava_med": 23.2, "gain_over_med_flamingo": 29.6},
    "T2": {
        "share_of_full_ft_moe": 95.31,
        "fewer_parameters": 339,
        "full_ft_moe_by_formula": 770.9,
        "gain_over_lora": 3.38,
        "gain_over_pissa": 8.75,
        "gain_over_hydralora": 4.84,
        "own_tower_lora_r8": 1.37,
        "own_tower_lora_r16": 2.74,
        "own_tower_lora_r32": 5.47,
        "own_tower_moelora_r8": 1.97,
        "split_tower_lora_r8": 1.54,
        "split_tower_moelora_r8": 2.31,
    },
    "T3": {"change_without_moe": -8.1},
    "T6": {"larger_share": 0.96, "smaller_share": 0.84, "qwen_with_routers": 1.083, "qwen_without_routers": 0.974},
    "T7": {"gain_from_64_to_128": 0.3},
    "ancestor_balance": {"top_2_over_top_p": 2.1, "top_2_over_shared_expert": 2.8},
}

packaged_table = cache(load_published)  # reading takes a while, and they do not change


def test_the_golden_values_are_all_there_is() -> None:
    assert {(name, row) for name in NAMES for row in packaged_table(name).rows} == set(GOLDEN)
    assert {
        name: {key: c.value for key, c in t.figures.items()} for name in NAMES if (t := packaged_table(name)).figures
    } == FIGURES


@pytest.mark.parametrize(("name", "row"), GOLDEN, ids="-".join)
def test_the_cells_are_those_of_the_sources(name: str, row: str) -> None:
    table = packaged_table(name)
    assert [table.cell(row, column).value for column in table.columns] == GOLDEN[name, row]


def test_the_columns_are_in_the_sources_order() -> None:
    own = [f"{task}.{metric}" for task in VQA for metric in ("closed_accuracy", "open_recall")]
    assert list(packaged_table("T1").columns) == [*own, "omnimedvqa.closed_accuracy", "average"]
    nine = Catalog().group("all23").task[4:13]
    assert list(packaged_table("T2").columns) == ["params", *(f"{task}.accuracy" for task in nine), "average"]
    both = ("iu_xray", "mimic_cxr")
    asked = [f"{name}_vqa.{metric}" for name in both for metric in ("accuracy", "f1", "auroc")]
    written = [f"{name}_report.{metric}" for name in both for metric in ("bleu", "rouge_l", "meteor")]
    assert list(packaged_table("T4").columns) == list(packaged_table("mmed_rag").columns) == [*asked, *written]


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_says_where_it_is_from_and_every_null_why(name: str) -> None:
    table = packaged_table(name)
    assert table.title and table.caveats
    for cell in (*table.cells.values(), *table.figures.values()):
        assert (cell.value is None) == bool(cell.reason), cell.name
        assert set(cell.source.split(", ")) <= set(table.sources)
        assert cell.confidence in ("high", "medium", "low")
        assert cell.unit
    text = table.text()
    for part in (table.title, *table.caveats, *table.statements, *table.sources.values()):
        assert part in text


def test_there_are_seven_tables_and_the_ancestors() -> None:
    assert set(SEVEN) < set(NAMES)
    assert {"ancestor", "mmed_rag"} < set(NAMES)


def test_the_letters_of_sources_mean_the_same_everywhere() -> None:
    meanings = {(letter, about) for name in NAMES for letter, about in packaged_table(name).sources.items()}
    assert {letter for letter, _ in meanings} == {"R", "A", "D", "P", "G", "M", "S"}
    assert len(meanings) == 7


def test_what_is_named_is_ours() -> None:
    """Methods, tasks, metrics and settings that the tables name exist, so that our rows can stand beside theirs."""
    catalog = Catalog()
    tasks = {*catalog.paths("tasks"), *catalog.group("all23").task}
    for table in map(packaged_table, NAMES):
        for key, row in table.rows.items():
            assert row.method is None or row.method in catalog.method_names(), (table.name, key)
            assert row.method is not None or key not in catalog.method_names()
        for column in table.columns.values():
            assert column.task is None or column.task in tasks
            assert column.metric is None or column.metric in known_names()
        for entry in (*table.rows.values(), *table.columns.values()):
            for setting, value in entry.settings.items():
                assert TUNERS["expert_lora"].value(setting.removeprefix("adapter."), value) == value


def test_ours_finds_its_place_beside_theirs() -> None:
    first, ancestor = packaged_table("T1"), packaged_table("ancestor")
    column = first.column_of("slake", "open_recall")
    assert column == "slake.open_recall"
    assert first.cell("spectral_moe", column).value == 59.9
    assert first.column_of("slake", "open_f1") is None
    assert first.rows_of("dora") == []
    assert {ancestor.rows[key].rank for key in ancestor.rows_of("lora")} == {8, 16, 32}


def test_what_is_not_certain_stays_so() -> None:
    second, fifth = packaged_table("T2"), packaged_table("T5")
    for method, values in (("pissa", [50.08, 54.10]), ("hydralora", [53.99, 56.11])):
        cell = second.cell(method, "average")
        assert cell.value is None
        assert [other.value for other in cell.alternatives] == values
    assert second.cell("pissa", "average").text() == "50.08 or 54.10"
    drops = [fifth.cell(row, "drop") for row in ("lora", "moelora", "spectral_moe")]
    assert [cell.text() for cell in drops] == ["> 50", "> 20", "~5"]
    assert {cell.unit for cell in drops} == {"points or percent"}
    assert second.cell("lora", "us_breast.accuracy").text() == "-"


@pytest.mark.parametrize(
    ("name", "row", "column", "said"),
    [
        ("T8", "lora", "average", "no published table 'T8'"),
        ("T2", "loar", "average", "T2 has no row 'loar'; did you mean lora"),
        ("T2", "lora", "averge", "T2 has no column 'averge'; did you mean average"),
    ],
)
def test_an_unknown_name_is_one_clear_error(name: str, row: str, column: str, said: str) -> None:
    with pytest.raises(RequestError, match=said.replace("?", r"\?")):
        packaged_table(name).cell(row, column)


def _set(content: Any, place: str, value: Any) -> None:
    *path, last = place.split("|")
    for key in path:
        content = content[key]
    content[last] = value


BAD = [
    ("T1", "colour", 1, "colour: is not a field"),
    ("T1", "rows|none|cells|averge", 1.0, "no column 'averge'; did you mean average"),
    ("T1", "rows|none|cells|average", "49.3", "rows.none.cells.average.value"),
    ("T1", "rows|none|cells|average", True, "rows.none.cells.average.value"),
    ("T1", "rows|none|cells|average", 49.31, "more than the 1 decimals"),
    ("T1", "rows|none|source", "Z", "source 'Z' is not spelled out"),
    ("T1", "caveats", [], "caveats"),
    ("T1", "table", "T9", "is 'T9' but the file is named 'T1'"),
    ("T1", "columns|average|rule", {"mean": ["slake"]}, "no column 'slake'"),
    ("T1", "figures|gain_over_qwen|rule", {"sum": ["a", "b"]}, "sum: is not a field"),
    ("T1", "figures|gain_over_qwen|rule", {"difference": ["a", "b"], "mean": ["a"]}, "exactly one of"),
    ("T1", "figures|gain_over_qwen|rule", {"difference": ["lora/average", "none/average"]}, "T1 has no row 'lora'"),
    ("T1", "figures|gain_over_qwen|rule", {"same_as": "gain_over_qwne"}, "T1 has no figure 'gain_over_qwne'"),
    ("T1", "figures|gain_over_qwen|rule", {"same_as": "T9:none/average"}, "no published table 'T9'"),
    ("T1", "figures|gain_over_qwen|gives", 18.8, None),
    (
        "T2",
        "rows|pissa|cells|average|alternatives",
        [{"value": 1.0, "reading": "x"}],
        "alternatives.0.rule: is missing",
    ),
    ("T2", "rows|pissa|cells|average|value", 50.08, "has a value and a reason"),
    ("T2", "figures|gain_over_lora|gives", 3.3, "but not why"),
    ("T2", "figures|own_tower_lora_r8|rule|parameters|method", "loar", "unknown 'loar'; did you mean lora"),
    ("T2", "figures|own_tower_lora_r8|rule|parameters|architecture", "vit", "unknown 'vit'"),
    ("T3", "rows|spectral_without_moe|cells|average_without_scaling", None, "is null without a reason"),
    ("T3", "rows|zero|cells", {"average": 67.3}, "zero/average_without_scaling: is null without a reason"),
]


@pytest.mark.parametrize(("name", "place", "value", "said"), BAD, ids=[f"{b[0]}-{b[1]}-{n}" for n, b in enumerate(BAD)])
def test_a_bad_file_is_one_clear_error(tmp_path: Path, name: str, place: str, value: object, said: str | None) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "paper")
    path = folder / f"{name}.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    _set(content, place, value)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    if said is None:  # well-formed: what it says is for the audit to judge
        assert load_published(name, folder).figures["gain_over_qwen"].gives == value
        return
    with pytest.raises(RequestError) as caught:
        load_published(name, folder)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert said in message
    assert "\n" not in message
