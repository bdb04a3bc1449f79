"""Whole runs over the VQA family, through lm-eval too, and what its broken files are on the command line."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import test_family_common as family
from conftest import Toy, make_toy
from test_family_common import card_at, cut_card, write_json
from test_run_common import do

from medbench.__main__ import main
from medbench.catalog import packaged
from medbench.data.load import load_items
from medbench.results.record import read_record


def omni(tmp_path: Path, count: int = 12) -> Toy:
    """OmniMedVQA's folder with its card, as `do` takes a set."""
    family.make_omni(tmp_path / "data")
    return Toy(tmp_path / "data", cut_card(tmp_path / "cards", "omnimedvqa", test=count))


def test_multiple_choice_is_answered_by_generation_and_by_likelihood(tmp_path: Path, tiny: Path) -> None:
    toy = omni(tmp_path)
    folder = do(toy, tiny, tmp_path / "out", "none")
    record = read_record(folder)
    assert record["protocol"] == "zero_shot"
    metrics = record["tasks"]["omnimedvqa"]["metrics"]
    assert metrics["closed_accuracy"]["n"] == metrics["choice_accuracy"]["n"] == 12
    items = {item.id: item for item in load_items(card_at(toy.card), "test", toy.root).items}
    answered = pd.read_parquet(folder / "predictions.parquet")
    right = 0
    for row in answered.itertuples():
        given = json.loads(str(row.probabilities))
        assert tuple(given) == items[str(row.id)].options
        right += max(given, key=given.__getitem__) == items[str(row.id)].answer
    assert metrics["choice_accuracy"]["value"] == pytest.approx(right / 12)


def test_conversations_are_trained_on_and_another_task_is_tested(tmp_path: Path, tiny: Path) -> None:
    toy = make_toy(tmp_path, train=4, test=4)
    family.make_llava(toy.root)
    card = cut_card(tmp_path / "cards2", "llava_med_instruct", train=None)
    folder = do(toy, tiny, tmp_path / "out", train_tasks=[[str(card)]])
    record = read_record(folder)
    assert record["trained_on"] == ["llava_med_instruct"]
    assert record["tasks"]["toy"]["protocol"] == "zero_shot"
    assert record["data"]["llava_med_instruct/train"]["items"] == 12
    assert len(record["training"]["stages"][0]["losses"]) == 2  # ceil(12 / 8)
    # Nothing of the split is pinned by the card, so the plan pins what it found.
    part = record["spec"]["stages"][0]["mixture"][0]["data"]
    assert part["digest"] == load_items(card_at(card), "train", toy.root).digest


def test_lm_eval_agrees_on_multiple_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.tasks import TaskManager

    from medbench.harness import process_results

    toy = omni(tmp_path)
    text = toy.card.read_text().replace("lm_eval_bridge.", "!function lm_eval_bridge.")
    toy.card.write_text(re.sub(r"'?(!function \S+?)'?$", r"\1", text, flags=re.MULTILINE))
    shutil.copy(packaged("tasks") / "lm_eval_bridge.py", toy.card.parent)
    (tmp_path / "medbench.toml").write_text('tasks = ["cards"]\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    card = card_at(toy.card)
    manager = TaskManager(
        include_path=str(toy.card.parent), include_defaults=False, metadata={"data_root": str(toy.root)}
    )
    task: Any = manager.load([card.name])["tasks"][card.name]
    docs = list(task.test_docs())
    items = load_items(card, "test", toy.root).items
    assert [doc["id"] for doc in docs] == [item.id for item in items]
    for item, doc in zip(items, docs, strict=True):
        assert task.doc_to_text(doc).removeprefix("<image>").strip() == card.render_prompt(item)
        assert task.doc_to_target(doc) == card.render_target(item) == item.answer
        letter = "ABCD"[item.options.index(item.answer)]
        for said, score in ((item.answer, 1.0), (f"({letter})", 1.0), ("qqq", 0.0)):
            assert task.process_results(doc, [said]) == process_results(doc, [said]) == {"closed_accuracy": score}


Prepare = Callable[[Path], list[object]]


def bad_answer(base: Path) -> list[object]:
    folder = family.make_omni(base / "data")
    records = family.omni_records("BUSI", 6)
    records[3]["gt_answer"] = "purple"
    write_json(folder / "BUSI.json", records)
    return ["--tasks", cut_card(base / "cards", "omnimedvqa", test=12)]


def missing_column(base: Path) -> list[object]:
    path = base / "data" / "pathvqa" / "data" / "test-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    pd.DataFrame({"image": [b"x"], "question": ["a?"]}).to_parquet(path)
    return ["--tasks", cut_card(base / "cards", "pathvqa", test=1)]


def llava(base: Path, **change: Any) -> list[object]:
    toy = make_toy(base, train=4, test=4)
    path = family.make_llava(base / "data")
    records = json.loads(path.read_text())
    records[2] |= change
    write_json(path, records)
    cards = cut_card(base / "cards2", "llava_med_instruct", train=None)
    return ["--tasks", toy.card, "--train-tasks", cards, "--method", "lora", "--budget", "rank=4"]


def cut_gz(base: Path) -> list[object]:
    path = family.make_cp(base / "data") / "vqa-rad-cp_test.json.gz"
    path.write_bytes(path.read_bytes()[:-9])
    return ["--tasks", cut_card(base / "cards", "vqa_rad_cp", train=3, test=3)]


def not_json(base: Path) -> list[object]:
    (family.make_pathvqa(base / "data") / "pvqa_test.json").write_text("<html>")
    return ["--tasks", cut_card(base / "cards", "pathvqa_original", train=3, validation=3, test=3)]


def no_images(base: Path) -> list[object]:
    shutil.rmtree(family.make_pathvqa(base / "data") / "images")
    return ["--tasks", cut_card(base / "cards", "pathvqa_original", train=3, validation=3, test=3)]


def only_trained_on(base: Path) -> list[object]:
    family.make_llava(base / "data")
    return ["--tasks", cut_card(base / "cards", "llava_med_instruct", train=None)]


def trained_on_a_test(base: Path) -> list[object]:
    family.make_omni(base / "data")
    return ["--tasks", cut_card(base / "cards", "omnimedvqa", test=12), "--method", "lora", "--budget", "rank=4"]


BAD: dict[str, tuple[Prepare, int, str]] = {
    "answer": (bad_answer, 1, r"item BUSI_0003 in .*BUSI\.json: the answer 'purple' is none of the options 'red', "),
    "column": (missing_column, 1, r"test-00000-of-00001\.parquet: column 'answer' is missing; there are image, quest"),
    "image": (lambda b: llava(b, image="x.png"), 1, r"item 2-0: image .*images/x\.png: the file is missing"),
    "text only": (lambda b: llava(b, image=None), 1, "conversation PMC2 has no 'image'"),
    "gz": (cut_gz, 1, r"vqa-rad-cp_test\.json\.gz: not readable as gzip"),
    "json": (not_json, 1, r"pvqa_test\.json: not readable as JSON"),
    "images": (no_images, 1, r"item test_0000-0: image .*images/test/test_0000\.jpg: the file is missing"),
    "to be tested": (only_trained_on, 2, "task llava_med_instruct can only be trained on; name it with --train-tasks"),
    "to be trained on": (trained_on_a_test, 2, "task omnimedvqa has no training split; name other tasks with --train"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_broken_file_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    prepare, code, message = BAD[name]
    words = prepare(tmp_path)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    method = [] if "--method" in words else ["--method", "none"]
    capfd.readouterr()
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in ("run", *words, *method, "--data-root", tmp_path / "data", "--dry-run")])
    out, err = capfd.readouterr()
    assert (done.value.code, out) == (code, ""), err
    assert re.fullmatch(rf"medbench: .*{message}.*\n", err), err
    assert list(Path.cwd().iterdir()) == []


def test_verify_says_that_the_questions_fit_and_the_images_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _, card = no_images(tmp_path)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(SystemExit) as done:
        main(["data", "verify", str(card), "--data-root", str(tmp_path / "data"), "--json"])
    out, err = capfd.readouterr()
    assert done.value.code == 1
    assert err.startswith("medbench: problems in ")
    assert err.count("\n") == 1
    for row in json.loads(out):
        (problem,) = row["problems"]
        assert problem.startswith("the 3 questions match the card, but 2 of 2 images are missing, the first ")
        assert (row["items"], row["expected"], len(row["digest"])) == (0, 3, 64)
