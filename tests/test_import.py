"""`medbench data items` and `medbench import`: another system's answers as a run of their own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import Toy
from test_run_common import do
from test_scoring_common import Call, Result, caller, items_of, said_by_gold, write_lines

from medbench.catalog import Catalog
from medbench.errors import RequestError, WorkError
from medbench.files import file_digest
from medbench.results.blind import build_blind_table
from medbench.results.imported import import_predictions, imported_spec
from medbench.results.record import load_records, read_record, read_scores
from medbench.results.tables import build_table, render
from medbench.spec import load_spec


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    return caller(capfd)


@pytest.fixture
def answers(toy: Toy, tmp_path: Path) -> Path:
    rows = said_by_gold(toy)
    rows[1]["prediction"] = "a very colourful thing"
    return write_lines(tmp_path / "answers.jsonl", rows)


def imported(call: Call, toy: Toy, file: Path, out: Path, *more: str, model: str = "HealthGPT-L14") -> Result:
    words = ("import", file, "--task", toy.card, "--model", model, "--data-root", toy.root, "--out", out)
    return call(*words, *more)


def folder_of(call: Call, toy: Toy, file: Path, out: Path, *more: str, model: str = "HealthGPT-L14") -> Path:
    result = imported(call, toy, file, out, "--json", *more, model=model)
    assert (result.code, result.err) == (0, "")
    (run,) = json.loads(result.out)["runs"]
    assert run["folder"] == str(out / run["run"])
    return Path(run["folder"])


def test_items_are_listed_without_their_gold(call: Call, toy: Toy) -> None:
    words = ("data", "items", toy.card, "--data-root", toy.root)
    rows = json.loads(call(*words, "--json").out)
    items = items_of(toy)
    assert [row["id"] for row in rows] == [item.id for item in items] == [str(49 + n) for n in range(24)]
    assert all(set(row) == {"id", "image", "question", "type"} for row in rows)
    assert all(Path(row["image"]).is_file() for row in rows)
    assert [row["question"] for row in rows] == [item.question for item in items]
    assert {row["type"] for row in rows} == {"closed", "open"}
    assert len(call(*words).out.splitlines()) == 2 + len(rows)
    train = json.loads(call(*words, "--split", "train", "--json").out)
    assert not {row["id"] for row in train} & {row["id"] for row in rows}
    assert call(*words, "--split", "dev").code == 2


def test_items_of_multiple_choice_keep_their_options(call: Call) -> None:
    """Options are what is asked; where images are no files, their key stands for them."""
    rows = json.loads(call("data", "items", "phantom_cls", "--json").out)
    assert len({row["image"] for row in rows}) == len(rows)
    assert "answer" not in {key for row in rows for key in row}


def test_ids_are_the_data_sets_own(shared: Path) -> None:
    """`qid` for VQA-RAD and SLAKE."""
    from medbench.data.load import load_items

    for task, file, mine in (
        ("vqa_rad", "vqa_rad/testset.json", lambda row: True),
        ("slake", "slake/test.json", lambda row: row["q_lang"] == "en"),
    ):
        published = [str(row["qid"]) for row in json.loads((shared / file).read_text("utf-8")) if mine(row)]
        assert [item.id for item in load_items(Catalog().task(task), "test", shared).items] == published


def test_an_import_is_a_run_like_any_other(call: Call, toy: Toy, answers: Path, tmp_path: Path) -> None:
    folder = folder_of(call, toy, answers, tmp_path / "runs")
    spec, record = load_spec(folder), read_record(folder)
    assert spec.identity == folder.name == record["run"]
    assert {path.name for path in folder.iterdir()} == {
        "spec.json", "predictions.parquet", "scores.parquet", "record.json",
    }  # fmt: skip
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    stored = pd.read_parquet(folder / "predictions.parquet")
    assert list(stored.columns) == ["task", "split", "id", "cluster", "prediction", "probabilities"]
    assert list(stored["id"]) == [item.id for item in items_of(toy)]
    scores = read_scores(folder, "toy")
    assert not {"gold", "answer", "prediction"} & set(scores)
    metrics = record["tasks"]["toy"]["metrics"]
    assert metrics["open_recall"]["value"] == pytest.approx(11 / 12)
    again = json.loads(call("score", folder, "--task", toy.card, "--data-root", toy.root, "--json").out)
    assert again["metrics"] == metrics
    outside = json.loads(call("score", answers, "--task", toy.card, "--data-root", toy.root, "--json").out)
    assert outside["metrics"] == metrics


def test_the_record_claims_nothing_that_is_not_known(call: Call, toy: Toy, answers: Path, tmp_path: Path) -> None:
    record = read_record(folder_of(call, toy, answers, tmp_path / "runs"))
    assert (record["method"], record["protocol"]) == ("HealthGPT-L14", "unknown")
    assert record["tasks"]["toy"]["protocol"] == "unknown"
    assert record["imported"]["digest"] == f"sha256:{file_digest(answers)}"
    assert record["imported"]["file"] == "answers.jsonl"
    assert (record["backbone"], record["dtype"], record["training"], record["stages"]) == ("unknown", None, {}, [])
    parameters = record["parameters"]
    assert parameters.pop("comparable") is False
    assert set(parameters.values()) == {None}
    assert str(tmp_path) not in json.dumps(record)
    frame = load_records(tmp_path / "runs")
    assert set(frame["trained_on"]) == {"unknown"}
    assert frame["trainable"].isna().all()


def test_an_identity_is_the_name_the_answers_and_the_card(call: Call, toy: Toy, answers: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    first = folder_of(call, toy, answers, out)
    written = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    copy = answers.rename(answers.with_name("renamed.jsonl"))
    assert folder_of(call, toy, copy, out) == first
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == written
    other_name = folder_of(call, toy, copy, out, model="LLaVA-Med (7B)")
    api = folder_of(call, toy, copy, out, "--backbone-free")
    copy.write_text(copy.read_text() + "\n")
    other_file = folder_of(call, toy, copy, out)
    content: dict[str, Any] = toy.card_content()
    content["metadata"]["version"] += 1
    toy.write_card(content)
    other_card = folder_of(call, toy, copy, out)
    assert len({first, other_name, api, other_file, other_card}) == 5
    assert read_record(api)["backbone"] == "none"
    card = Catalog().task(str(toy.card))
    spec = imported_spec("M", "sha256:0", card, "test", toy.root)
    assert (spec.protocol, spec.method.tuner, spec.tests[0].card) == ("unknown", "imported", card.digest)


def test_a_finished_import_does_no_work(toy: Toy, answers: Path, tmp_path: Path, monkeypatch: Any) -> None:
    words = (answers, "M", Catalog().task(str(toy.card)), "test", toy.root, tmp_path / "runs")
    folder = import_predictions(*words)
    monkeypatch.setattr("medbench.results.imported.read_predictions", None)
    monkeypatch.setattr("medbench.results.imported.check_images", None)
    assert import_predictions(*words) == folder
    (folder / "record.json").unlink()
    with pytest.raises(TypeError):  # an unfinished one is done again
        import_predictions(*words)


def test_a_table_shows_it_as_a_row_of_its_own(call: Call, toy: Toy, tiny: Path, answers: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    ours, theirs = do(toy, tiny, out, "none"), folder_of(call, toy, answers, out)
    assert "trained on" in imported(call, toy, answers, out).out
    other = answers.with_name("second.jsonl")
    other.write_text(answers.read_text() + "\n")
    again = folder_of(call, toy, other, out)
    table = build_table([out])
    assert [(row.method, row.imported, row.seeds) for row in table.rows if row.imported] == [
        ("HealthGPT-L14", True, (0,)),
        ("HealthGPT-L14", True, (0,)),
    ]
    assert sorted(row.method for row in table.rows) == ["HealthGPT-L14", "HealthGPT-L14", "none"]
    text = render(table, "md")
    lines = [line for line in text.splitlines() if line.startswith("| HealthGPT-L14 ")]
    assert len(lines) == 2
    assert all("| unknown (imported) |" in line and "| - " in line for line in lines)
    assert all(f"weights=sha256:{file_digest(file)[:8]}" in text for file in (answers, other))
    assert "Imported rows are other systems' answers" in text
    for form in ("csv", "latex", "html"):
        assert "HealthGPT-L14" in render(table, form)
    frame = table.frame()
    value = read_record(theirs)["tasks"]["toy"]["metrics"]["open_recall"]["value"]
    own = frame[(frame["method"] == "HealthGPT-L14") & (frame["metric"] == "open_recall")]
    assert own["value"].tolist() == [value, value]
    assert own["trainable"].isna().all()
    assert set(frame["trained_on"]) == {"", "unknown (imported)"}
    assert {ours, theirs, again} == set(out.iterdir())


def test_a_blind_table_leaves_it_out(call: Call, toy: Toy, answers: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    folder_of(call, toy, answers, out)
    with pytest.raises(RequestError, match=r"no.* blind twin \(0 sighted rows, 0 blind ones, 1 imported"):
        build_blind_table([out])
    result = call("table", out, "--blind")
    assert (result.code, result.err.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": ""}, "--model '': expected up to 80"),
        ({"model": "a|b"}, r"--model 'a\|b': expected"),
        ({"model": "x" * 81}, "expected up to 80"),
        ({"model": "name\n"}, "expected up to 80"),
        ({"model": "lora"}, "--model lora: a method here has that name"),
        ({"file": "gone.jsonl"}, "gone.jsonl: no such file"),
        ({"file": "."}, "no such file; expected a JSONL"),
        ({"drop": 2}, r"2 missing \('49', '50'\), 0 unknown, 0 duplicate"),
        ({"text": "\ud800"}, "item '49': the prediction holds half a character"),
        ({"text": None}, r"line 1 \(id '49'\): 'prediction' must be text"),
        ({"more": ("--split", "train")}, "--split 'train': known: test, validation"),
        ({"more": ("--split", "validation")}, "has no|24"),
    ],
)
def test_what_cannot_be_imported_leaves_nothing_behind(
    call: Call, toy: Toy, answers: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    rows = said_by_gold(toy)[change.get("drop", 0) :]
    if "text" in change:
        rows[0]["prediction"] = change["text"]
    write_lines(answers, rows)
    file = tmp_path / change["file"] if "file" in change else answers
    result = imported(call, toy, file, tmp_path / "runs", *change.get("more", ()), model=change.get("model", "M"))
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(f"medbench: .*({message}).*\n", result.err), result.err
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_be_written_is_one_line(call: Call, toy: Toy, answers: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    result = imported(call, toy, answers, tmp_path / "runs")
    assert (result.code, result.out) == (1, "")
    assert re.fullmatch("medbench: cannot write .*\n", result.err)


def test_a_write_that_fails_leaves_nothing_behind(toy: Toy, answers: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """A fault while the last file is written, as of a full disk."""

    def full(*_: object) -> None:
        raise WorkError("cannot write record.json: No space left on device")

    out = tmp_path / "runs"
    words = (answers, "M", Catalog().task(str(toy.card)), "test", toy.root, out)
    with monkeypatch.context() as patch:
        patch.setattr("medbench.results.imported.write_json", full)
        with pytest.raises(WorkError, match="No space"):
            import_predictions(*words)
    assert list(out.iterdir()) == []
    assert read_record(import_predictions(*words))["method"] == "M"
