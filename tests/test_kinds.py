"""Kinds of task: each has its scores and figures, one run may test several, and older runs are of the first kind."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import Toy, make_toy
from test_hallucination_common import make_medheval, make_rag, rag_card, read_card
from test_hallucination_layouts import vishal_card
from test_run_common import do, request

from medbench.catalog import Catalog, read_yaml
from medbench.data.load import load_items
from medbench.errors import RequestError, WorkError
from medbench.plan import resolve
from medbench.results.imported import import_predictions
from medbench.results.record import read_record, read_scores, task_figures
from medbench.results.rescore import rescore
from medbench.results.rows import known_metrics
from medbench.results.tables import build_table
from medbench.scoring.kinds import FAMILIES, get_family, kind_of, kinds, known_names
from medbench.scoring.predictions import score_task
from medbench.scoring.stats import estimate_metrics
from medbench.scoring.yesno import METRICS, always_yes


@pytest.mark.parametrize("kind", kinds())
def test_a_family_is_whole(kind: str) -> None:
    family = get_family(kind)
    assert len(set(family.METRICS)) == len(family.METRICS) > 0
    assert set(family.METRICS) <= set(known_names()) == set(known_metrics(["all"]))
    measures, columns = getattr(family, "MEASURES", {}), getattr(family, "COLUMNS", ())
    assert set(measures) <= set(family.METRICS)
    assert {column for measure in measures.values() for column in measure.columns} <= set(columns)


def test_a_kind_without_scores_is_refused_before_anything_is_trained(
    toy: Toy, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(FAMILIES, "vqa")
    with pytest.raises(RequestError, match=r"^tasks of kind 'vqa' cannot be scored; known: "):
        resolve(request(toy, tiny), Catalog())


def test_tables_of_before_there_were_kinds_are_of_vqa() -> None:
    table = pd.DataFrame({"id": ["a"]})
    assert kind_of(table) == kind_of(table.assign(kind=None)) == "vqa"
    assert kind_of(table.assign(kind="hallucination")) == "hallucination"


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> tuple[Toy, Path, list[Path]]:
    """A run that tests three tasks of two kinds, trained on the first: data root, run folder, cards."""
    base = tmp_path_factory.mktemp("several")
    toy = make_toy(base, train=4, test=4)
    make_rag(toy.root)
    make_medheval(toy.root)
    cards = [toy.card, rag_card(base / "cards2"), vishal_card(base)]
    folder = do(toy, tiny, base / "out", tasks=[str(card) for card in cards], train_tasks=[[str(toy.card)]])
    return toy, folder, cards


def test_one_run_of_several_kinds(several: tuple[Toy, Path, list[Path]]) -> None:
    toy, folder, cards = several
    record = read_record(folder)
    assert list(record["tasks"]) == ["toy", "rag", "toy_vishal"]
    assert "kind" not in record["tasks"]["toy"]
    rag = record["tasks"]["rag"]
    assert (rag["kind"], rag["n"], rag["clusters"], rag["left_out"], rag["skipped"]) == ("hallucination", 6, 4, 4, 0)
    assert record["data"]["rag/test"]["left_out"] == 4
    assert "left_out" not in record["data"]["toy/test"]
    assert tuple(rag["metrics"]) == METRICS
    golds = [item.answer for item in load_items(read_card(cards[1]), "test", toy.root).items]
    assert rag["always_yes"] == pytest.approx(always_yes(golds))
    assert "types" not in rag
    assert list(record["tasks"]["toy_vishal"]["types"]) == ["type_1", "type_2", "type_3", "type_4"]
    # Every answer has the probabilities that AUROC and ECE need: of two candidates, or of the options.
    assert (rag["metrics"]["auroc"]["n"], record["tasks"]["toy_vishal"]["metrics"]["ece"]["n"]) == (6, 5)


def test_the_scores_of_several_kinds_are_a_union(several: tuple[Toy, Path, list[Path]]) -> None:
    toy, folder, cards = several
    record, stored = read_record(folder), pd.read_parquet(folder / "predictions.parquet")
    for card in map(read_card, cards):
        scores = read_scores(folder, card.name)
        rows = stored[stored["task"] == card.name]
        alone = score_task(card.name, "test", load_items(card, "test", toy.root).items, rows, kind=card.metadata.kind)
        assert kind_of(scores) == card.metadata.kind
        assert task_figures([scores]) == task_figures([alone])
        figures = {name: entry.to_json() for name, entry in estimate_metrics([scores]).items()}
        assert figures == record["tasks"][card.name]["metrics"]


def test_a_table_has_the_figures_of_each_kind(several: tuple[Toy, Path, list[Path]]) -> None:
    _, folder, _ = several
    table = build_table([folder], ["closed_accuracy", "accuracy", "unparseable_share"])
    assert set(table.columns) == {
        *[("toy", "closed_accuracy")],
        *[(task, metric) for task in ("rag", "toy_vishal") for metric in ("accuracy", "unparseable_share")],
    }


def test_scores_without_the_columns_of_their_kind_are_broken(
    several: tuple[Toy, Path, list[Path]], tmp_path: Path
) -> None:
    _, folder, _ = several
    scores = pd.read_parquet(folder / "scores.parquet")
    scores.drop(columns=["called_yes"]).to_parquet(tmp_path / "scores.parquet")
    with pytest.raises(WorkError, match=r"broken scores \(columns called_yes\)"):
        read_scores(tmp_path, "rag")
    assert len(read_scores(tmp_path, "toy")) == 8


def test_stored_answers_are_scored_again_and_imported_by_kind(
    several: tuple[Toy, Path, list[Path]], tmp_path: Path
) -> None:
    toy, folder, cards = several
    card = read_card(cards[1])
    record = read_record(folder)["tasks"]["rag"]
    again = rescore(folder, card, "test", "medbench", toy.root)
    assert {name: again["metrics"][name] for name in METRICS} == record["metrics"]
    assert again["always_yes"] == record["always_yes"]
    file = tmp_path / "said.jsonl"
    ids = [item.id for item in load_items(card, "test", toy.root).items]
    file.write_text("\n".join(json.dumps({"id": i, "prediction": "Yes, I think so."}) for i in ids))
    other = read_record(import_predictions(file, "Parrot", card, "test", toy.root, tmp_path / "out"))["tasks"]["rag"]
    assert {name: other["metrics"][name]["value"] for name in other["always_yes"]} == other["always_yes"]
    assert (other["metrics"]["yes_share"]["value"], other["metrics"]["auroc"]["value"]) == (1, None)


def test_what_asks_about_anothers_images_is_no_zero_shot(toy: Toy, tiny: Path, tmp_path: Path) -> None:
    make_rag(toy.root)
    for images_of, protocol in (([], "zero_shot"), (["toy"], "in_domain")):
        card = rag_card(tmp_path / protocol, images_of=images_of)
        asked = request(toy, tiny, tasks=[str(card)], train_tasks=[[str(toy.card)]])
        assert [spec.protocol for spec in resolve(asked, Catalog()).specs] == [protocol]


def test_naming_whose_images_it_asks_about_changes_no_figure(tmp_path: Path) -> None:
    plain, other = rag_card(tmp_path / "a"), rag_card(tmp_path / "b", images_of=["toy"])
    assert read_card(plain).digest == read_card(other).digest
    content = read_yaml(plain)
    content["metadata"]["label"] = "answer"
    plain.write_text(yaml.safe_dump(content))
    assert read_card(plain).digest != read_card(other).digest
