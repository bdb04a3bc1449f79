"""Stages, mixtures, limits, splits and bad items: what a run trains on and is tested on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import Toy, make_toy, second_task
from test_run_common import do, items_of

import medbench.runners.vlm
from medbench.data.item import BadItemError, Item
from medbench.results.record import read_record


@pytest.fixture
def mine(tmp_path: Path) -> Toy:
    return make_toy(tmp_path, train=8, test=4)


@pytest.fixture
def second(mine: Toy) -> str:
    return second_task(mine)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[list[Item]]:
    """What the trainer was given, a list for each part."""
    given: list[list[Item]] = []
    real = medbench.runners.vlm.examples

    def spied(vlm: Any, card: Any, items: Sequence[Item], tokens: Any) -> Any:
        given.append(list(items))
        return real(vlm, card, items, tokens)

    monkeypatch.setattr(medbench.runners.vlm, "examples", spied)
    return given


def losses(folder: Path) -> list[list[float]]:
    return [[entry["loss"] for entry in stage["losses"]] for stage in read_record(folder)["training"]["stages"]]


def weights(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_sequence_trains_its_stages_in_turn(mine: Toy, second: str, tiny: Path, tmp_path: Path) -> None:
    toy = str(mine.card)
    alone = do(mine, tiny, tmp_path / "out", train_tasks=[[toy]])
    sequence = do(mine, tiny, tmp_path / "out", train_tasks=[[toy], [second]])
    back = do(mine, tiny, tmp_path / "out", train_tasks=[[second], [toy]])
    mixture = do(mine, tiny, tmp_path / "out", train_tasks=[[toy, second]])
    assert [len(stage) for stage in losses(sequence)] == [2, 2]
    assert [len(stage) for stage in losses(mixture)] == [4]
    assert losses(sequence)[0] == losses(alone)[0]
    # The second stage goes on from the first: its first loss is not that of a fresh adapter.
    assert losses(sequence)[1][0] != losses(back)[0][0]
    assert len({weights(folder) for folder in (alone, sequence, back, mixture)}) == 4
    assert read_record(sequence)["trained_on"] == ["toy", "other"]
    assert read_record(back)["trained_on"] == ["other", "toy"]


def test_a_sequence_goes_on_from_its_last_finished_stage(
    mine: Toy, second: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"train_tasks": [[str(mine.card)], [second]], "settings": {"adapter.dropout": 0.3}}
    unbroken = do(mine, tiny, tmp_path / "one", **asked)
    real, calls = medbench.training.fit.fit_stage, []

    def stops_in_the_second(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(medbench.training.fit, "fit_stage", stops_in_the_second)
        do(mine, tiny, tmp_path / "two", **asked)
    assert len(calls) == 2
    resumed = do(mine, tiny, tmp_path / "two", **asked)
    assert read_record(resumed)["training"]["stages_done_before"] == 1
    assert weights(resumed) == weights(unbroken)


@pytest.mark.parametrize(("weight", "steps"), [(0.5, 3), (1, 4), (2, 6)])
def test_a_mixtures_weight_says_how_often_a_task_is_seen(
    mine: Toy, second: str, tiny: Path, tmp_path: Path, weight: float, steps: int
) -> None:
    folder = do(mine, tiny, tmp_path, train_tasks=[[str(mine.card), second]], settings={"mixture.other": weight})
    assert [len(stage) for stage in losses(folder)] == [steps]


def test_limits_cut_the_test_at_its_head_and_training_by_hash(
    mine: Toy, tiny: Path, tmp_path: Path, shown: list[list[Item]]
) -> None:
    record = read_record(folder := do(mine, tiny, tmp_path, limit=3, train_limit=5))
    assert list(pd.read_parquet(folder / "predictions.parquet")["id"]) == [i.id for i in items_of(mine, "test")[:3]]
    assert record["tasks"]["toy"]["n"] == 3
    assert record["data"]["toy/train"]["items"] == len(shown[0]) == 5
    everything = [item.id for item in items_of(mine, "train")]
    assert {item.id for item in shown[0]} < set(everything)
    assert [item.id for item in shown[0]] != everything[:5]


def test_validation_images_are_not_trained_on(mine: Toy, tiny: Path, tmp_path: Path, shown: list[list[Item]]) -> None:
    folder = do(mine, tiny, tmp_path, split="validation")
    tested = set(pd.read_parquet(folder / "predictions.parquet")["cluster"])
    trained = {item.image.key for item in shown[0]}
    assert tested
    assert not tested & trained
    assert tested | trained == {item.image.key for item in items_of(mine, "train")}
    assert set(read_record(folder)["data"]) == {"toy/fit", "toy/validation"}


def test_several_tasks_are_tested_apart(mine: Toy, second: str, tiny: Path, tmp_path: Path) -> None:
    folder = do(mine, tiny, tmp_path, tasks=[str(mine.card), second])
    table = pd.read_parquet(folder / "predictions.parquet")
    assert table.groupby("task").size().to_dict() == {"toy": 8, "other": 8}
    assert list(read_record(folder)["tasks"]) == ["toy", "other"]
    assert read_record(folder)["protocol"] == "in_domain"


def test_bad_items_are_refused_or_skipped_and_counted(
    mine: Toy, tiny: Path, tmp_path: Path, shown: list[list[Item]]
) -> None:
    for name in ("train3.png", "test1.png"):
        file = mine.folder / "images" / name
        file.write_bytes(file.read_bytes()[:70])
    with pytest.raises(BadItemError, match=r"task toy: item \d+: image .*(train3|test1)\.png"):
        do(mine, tiny, tmp_path / "fail")
    record = read_record(folder := do(mine, tiny, tmp_path / "skip", on_bad_item="skip"))
    for key, items, name in (("toy/train", 14, "train3.png"), ("toy/test", 6, "test1.png")):
        about = record["data"][key]
        assert (about["items"], about["skipped"]) == (items, 2)
        assert all(name in text for text in about["skipped_items"])
    assert (record["tasks"]["toy"]["n"], record["tasks"]["toy"]["skipped"]) == (6, 2)
    assert "train3.png" not in {item.image.key for item in shown[0]}
    assert "test1.png" not in set(pd.read_parquet(folder / "predictions.parquet")["cluster"])
