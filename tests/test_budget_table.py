"""`medbench budget`: the published percentages to the digit, the real towers beside them, and rows for every method."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest

from medbench.__main__ import main
from medbench.backbones.registry import backbone_names, get_backbone, shipped_table
from medbench.budget_table import budget_rows, budget_text
from medbench.catalog import Catalog, Settings
from medbench.errors import RequestError
from medbench.tuners import TUNERS, Tuner, get_tuner

CATALOG = Catalog(Settings())
METHODS = CATALOG.method_names()
CLIPS = ["biomedclip", "clip-vit-b-16", "clip-vit-b-32"]
COLUMNS = {
    *("method", "backbone", "rank", "experts", "trainable_parameters", "router_parameters", "percent_published"),
    *("percent_of_tower", "percent_of_model", "budget_distance", "comparable", "extra_flops_per_token"),
    *("optimiser_bytes", "note"),
}


def row(backbone: str, method: str, budget: str | None = None) -> dict[str, Any]:
    (found,) = budget_rows(CATALOG, backbone, [method], budget, strict=True)
    return found


@pytest.mark.parametrize("backbone", CLIPS)
@pytest.mark.parametrize(
    ("method", "rank", "percent"),
    [
        ("lora", 8, 1.496),
        ("lora", 32, 5.984),
        ("spectral_moe", 8, 2.244),
        ("full_ft_moe", 8, 770.9),
        ("full_ft", 8, 100),
    ],
)
def test_the_published_percentages_of_vit_b(backbone: str, method: str, rank: int, percent: float) -> None:
    digits = 1 if percent > 100 else 3
    assert round(row(backbone, method, f"rank={rank}")["percent_published"], digits) == percent


@pytest.mark.parametrize(
    ("method", "rank", "printed"),
    [
        *(("lora", 8, 1.49), ("lora", 16, 2.99), ("lora", 32, 5.98), ("dora", 8, 1.49), ("pissa", 8, 1.49)),
        *(("milora", 8, 1.49), ("moelora", 8, 2.24), ("adamole", 8, 2.33), ("hydralora", 8, 1.58), ("goat", 8, 2.24)),
    ],
)
def test_the_ancestors_table_which_cuts_digits_off(method: str, rank: int, printed: float) -> None:
    """GOAT's image classification, CLIP ViT-B/32: 1.496 is printed as 1.49."""
    assert int(100 * row("clip-vit-b-32", method, f"rank={rank}")["percent_published"]) / 100 == printed


#: Section "Parameter accounting" of the paper's method notes, a layer of ViT-B (H = 768) at rank r with N experts.
ACCOUNTING = {
    "lora": lambda r, n: 18 * 768 * r,
    "rslora": lambda r, n: 18 * 768 * r,
    "pissa": lambda r, n: 18 * 768 * r,
    "milora": lambda r, n: 18 * 768 * r,
    "dora": lambda r, n: 18 * 768 * r + 6,
    "moelora": lambda r, n: 18 * 768 * r + 9 * 768 * n,
    "goat": lambda r, n: 18 * 768 * r + 9 * 768 * n,
    "spectral_moe": lambda r, n: 18 * 768 * r + 9 * 768 * n,
    "hydralora": lambda r, n: 9 * 768 * r + 9 * 768 * n + 9 * 768 * r // n,
    "adamole": lambda r, n: 18 * 768 * r + 9 * 768 * n + 9 * 768,
}


@pytest.mark.parametrize("rank", [8, 16, 32])
@pytest.mark.parametrize("method", ACCOUNTING)
def test_the_published_formulas(method: str, rank: int) -> None:
    wanted = 100 * ACCOUNTING[method](rank, 8) * 12 / 88_715_520
    assert row("clip-vit-b-32", method, f"rank={rank}")["percent_published"] == pytest.approx(wanted, rel=1e-12)


def test_where_nothing_is_published_there_is_no_figure() -> None:
    assert row("biomedclip", "kasa")["percent_published"] is None
    assert row("llama-2-7b", "full_ft_moe")["percent_published"] is None
    for backbone in ("nano-vl", "qwen2.5-vl-3b", "qwen2.5-vl-7b"):
        assert {r["percent_published"] for r in budget_rows(CATALOG, backbone, METHODS, None, strict=True)} == {None}


def test_llama_with_k_and_v_grouped() -> None:
    assert round(row("llama-2-7b", "lora", "rank=32")["percent_published"], 3) == 0.838
    assert round(row("llama-2-7b", "spectral_moe", "rank=32")["percent_published"], 3) == 0.958


def test_the_papers_7b_backbone() -> None:
    lora, routed = row("qwen2.5-vl-7b", "lora", "rank=32"), row("qwen2.5-vl-7b", "spectral_moe", "rank=32")
    assert lora["trainable_parameters"] == 80_740_352
    assert round(lora["percent_of_model"], 3) == 0.974
    assert routed["router_parameters"] == 9_060_352
    assert routed["trainable_parameters"] == 80_740_352 + 9_060_352
    assert round(routed["percent_of_model"], 3) == 1.083


def test_biomedclips_visual_tower() -> None:
    """Fused qkv, proj, fc1 and fc2 of 86.2 M."""
    shares = [round(row("biomedclip", "lora", f"rank={rank}")["percent_of_tower"], 2) for rank in (8, 16, 32)]
    assert shares == [1.37, 2.74, 5.47]
    assert round(row("biomedclip", "spectral_moe", "rank=8")["percent_of_tower"], 2) == 1.97


def test_full_fine_tuning_is_all_of_the_tower_and_upcycling_many_of_it() -> None:
    """As papers count it: their 100 % is the visual tower; the text tower is frozen."""
    everything = row("biomedclip", "full_ft")
    assert (everything["percent_of_tower"], everything["percent_published"]) == (100, 100)
    assert everything["trainable_parameters"] == 86_191_872
    assert everything["percent_of_model"] == pytest.approx(100 * 86_191_872 / 195_902_721)
    assert row("nano-vl", "full_ft")["percent_of_model"] == 100
    routed = row("biomedclip", "full_ft_moe")
    more = 12 * (7 * (2304 * 768 + 768 * 768 + 2 * 768 * 3072) + 8 * (3 * 768 + 3072))
    assert routed["trainable_parameters"] == 86_191_872 + more
    assert routed["percent_of_tower"] == pytest.approx(100 * (86_191_872 + more) / 86_191_872)


def test_routers_are_what_chooses_among_experts() -> None:
    """On nano-vl the adapted linears have 4 (6 x 256 + 512) inputs in all."""
    inputs = 4 * (6 * 256 + 512)
    rows = {r["method"]: r["router_parameters"] for r in budget_rows(CATALOG, "nano-vl", METHODS, None, strict=True)}
    eight = dict.fromkeys(("spectral_moe", "goat", "moelora", "hydralora", "full_ft_moe"), 8 * inputs)
    assert {name: size for name, size in rows.items() if size is not None} == eight | {"adamole": 9 * inputs}


def test_operations_and_memory() -> None:
    """Every trained factor costs a multiplication and an addition, and so does every frozen one."""
    lora, moe, ours = (row("nano-vl", name, "rank=16") for name in ("lora", "moelora", "spectral_moe"))
    assert lora["extra_flops_per_token"] == 2 * lora["trainable_parameters"]
    assert moe["extra_flops_per_token"] == 2 * moe["trainable_parameters"]
    assert ours["extra_flops_per_token"] == moe["extra_flops_per_token"] + lora["extra_flops_per_token"]
    assert [row("nano-vl", name)["extra_flops_per_token"] for name in ("none", "full_ft")] == [0, 0]
    assert ours["optimiser_bytes"] == 8 * ours["trainable_parameters"]


@pytest.mark.parametrize("backbone", backbone_names())
def test_all_methods_stand_under_the_default_budget(backbone: str) -> None:
    rows = {r["method"]: r for r in budget_rows(CATALOG, backbone, METHODS, None, strict=True)}
    assert list(rows) == METHODS
    assert all(set(r) == COLUMNS for r in rows.values())
    assert {name for name, r in rows.items() if not r["comparable"]} == {"none", "full_ft", "full_ft_moe"}
    wanted = rows["spectral_moe"]["trainable_parameters"]
    for r in (r for r in rows.values() if r["comparable"]):
        assert r["budget_distance"] == pytest.approx(r["trainable_parameters"] / wanted - 1)
        assert r["budget_distance"] <= 0.05
        assert (r["note"] is not None) == (r["budget_distance"] < -0.05)
    assert 0 < rows["adamole"]["budget_distance"] < 0.05
    assert rows["adamole"]["rank"] == rows["spectral_moe"]["rank"]


@pytest.mark.parametrize("backbone", backbone_names())
@pytest.mark.parametrize("method", METHODS)
def test_more_rank_is_more_parameters(backbone: str, method: str) -> None:
    about = get_backbone(backbone)
    recipe, tuner = CATALOG.method(method).at(about.scale), get_tuner(CATALOG.method(method).tuner)
    table = shipped_table(about, recipe.adapter.get("targets", about.default_targets))
    assert table is not None
    step = tuner.step(recipe.adapter)
    counts = [tuner.count(recipe.adapter, rank, table) for rank in range(step, table.smallest_side + 1, step)]
    assert all((less < more) if tuner.ranked else (less == more) for less, more in pairwise(counts))


def test_the_papers_ranks_are_not_one_budget() -> None:
    rows = {r["method"]: r for r in budget_rows(CATALOG, "biomedclip", METHODS, "paper", strict=True)}
    assert not any(r["comparable"] for r in rows.values())
    assert all(r["budget_distance"] is None for r in rows.values())
    published = {
        name: round(rows[name]["percent_published"], 3) for name in ("lora", "pissa", "moelora", "spectral_moe")
    }
    assert published == {"lora": 5.984, "pissa": 1.496, "moelora": 2.244, "spectral_moe": 2.244}
    ranks = {r["rank"] for r in budget_rows(CATALOG, "qwen2.5-vl-7b", METHODS, "paper", strict=True)}
    assert ranks == {32, None}


def test_what_fits_no_rank_is_refused_by_name_and_noted_among_all() -> None:
    with pytest.raises(RequestError, match="below the smallest that method spectral_moe can have"):
        row("nano-vl", "spectral_moe", "like=lora:4")
    rows = {r["method"]: r for r in budget_rows(CATALOG, "nano-vl", METHODS, "like=lora:4", strict=False)}
    assert set(rows["spectral_moe"]) == COLUMNS
    assert rows["spectral_moe"]["rank"] is rows["spectral_moe"]["trainable_parameters"] is None
    assert "below the smallest" in rows["spectral_moe"]["note"]
    assert (rows["lora"]["rank"], rows["lora"]["note"]) == (4, None)
    text = budget_text(list(rows.values()), "nano-vl", "like=lora:4")
    assert all(name in text for name in METHODS)


@pytest.mark.parametrize("budget", ["like=loraa", "like=none", "like=spectral_moe:12", "much"])
def test_a_budget_that_is_none_is_refused_also_for_all(budget: str) -> None:
    with pytest.raises(RequestError):
        budget_rows(CATALOG, "nano-vl", METHODS, budget, strict=False)


def test_a_recipe_without_targets_for_clip_is_refused_with_what_would_be_right(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("name: mine\ndescription: d\nsource: s\ntuner: lora\nadapter: {targets: language}\n")
    with pytest.raises(
        RequestError, match=r"no targets 'language'; it has vision, text .*scales\.clip\.adapter\.targets"
    ):
        row("biomedclip", str(recipe))
    recipe.write_text(recipe.read_text() + "scales: {clip: {adapter: {targets: text}}}\n")
    found = row("biomedclip", str(recipe), "rank=8")
    assert found["trainable_parameters"] == 12 * 8 * (4 * 2 * 768 + 2 * (768 + 3072))
    assert found["percent_published"] is None  # papers adapt the visual tower


def test_a_tuner_that_counts_in_all_only_has_no_operations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Gain(Tuner):
        """One number a layer."""

        defaults: ClassVar[dict[str, Any]] = {"targets": "language"}
        ranked = False

        def count(self, settings: Any, rank: int, table: Any) -> int:
            return sum(layer.count for layer in table.layers)

    monkeypatch.setitem(TUNERS, "gain", Gain())
    recipe = tmp_path / "gain.yaml"
    recipe.write_text("name: gain\ndescription: d\nsource: s\ntuner: gain\n")
    found = row("llama-2-7b", str(recipe))
    assert (found["trainable_parameters"], found["comparable"]) == (7 * 32, False)
    assert found["extra_flops_per_token"] is found["percent_published"] is found["router_parameters"] is None


def test_the_table_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["budget", "--backbone", "biomedclip", "--budget", "paper", "--method", "lora,none"])
    assert done.value.code == 0
    heading, _, names, _, lora, none, _, foot = capsys.readouterr().out.splitlines()
    assert heading == "backbone biomedclip, budget paper"
    assert names.split()[:4] == ["method", "rank", "experts", "trainable"]
    assert lora.split()[:7] == ["lora", "32", "-", "4,718,592", "5.984", "5.475", "2.409"]
    assert "not comparable" in lora
    assert "reference" in none
    assert "88,715,520" in foot


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--method", "none"]])
def test_what_has_a_table_only_is_not_run(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["run", "--backbone", "llama-2-7b", "--tasks", "phantom_vqa", *more])
    out, err = capsys.readouterr()
    assert (done.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("medbench: backbone llama-2-7b: ")


LIGHT = """
import contextlib, io, json, sys
from medbench.__main__ import main
found = {}
for name in sys.argv[1:]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            main(["budget", "--backbone", name, "--method", "all", "--json"])
        except SystemExit as done:
            assert done.code == 0, name
    found[name] = len(json.loads(out.getvalue()))
heavy = {"torch", "transformers", "peft", "open_clip", "timm"} & set(sys.modules)
assert not heavy, heavy
print(json.dumps(found))
"""


def test_no_shipped_backbone_needs_torch(tmp_path: Path) -> None:
    words = [sys.executable, "-c", LIGHT, *backbone_names()]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == dict.fromkeys(backbone_names(), len(METHODS))
