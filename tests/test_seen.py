"""Zero-shot of what was trained before: adapters and aligned backbones know which images they have seen."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from PIL import Image
from test_clip_common import build
from test_run_common import jobs_of
from test_zero_shot_common import asked, do, draw_set

from medbench.catalog import Catalog
from medbench.data.seen import SEEN, read_seen
from medbench.errors import RequestError, WorkError
from medbench.files import read_json
from medbench.job import Job
from medbench.plan import resolve
from medbench.run import run_all


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sets; one tested image of `copy` is a training image of `one`, under another name."""
    root = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("one", "other", "copy")):
        draw_set(root, name, seed)
    shutil.copy(root / "one" / "images" / "train-3.png", root / "copy" / "images" / "test-4.png")
    return root


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbones") / "small"
    build("native", folder)
    return folder


@pytest.fixture(scope="module")
def adapter(data: Path, small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return do(card(data, "one"), small, tmp_path_factory.mktemp("runs")) / "adapter"


def card(data: Path, name: str) -> Path:
    return data / "cards" / f"{name}.yaml"


def job_of(data: Path, name: str, small: Path, adapter: Path, out: Path, protocol: str | None = None) -> Job:
    request = asked(card(data, name), small, "lora", adapter=str(adapter), budget=None, settings={}, protocol=protocol)
    request = dataclasses.replace(request, settings={})
    plan = resolve(request, Catalog())
    (job,) = jobs_of(request, out)
    return dataclasses.replace(job, protocol=plan.protocol)


def test_an_adapter_keeps_the_hashes_of_its_training_images(adapter: Path) -> None:
    assert len(read_seen(adapter) or ()) == 24


@pytest.mark.parametrize(
    ("name", "asked_for", "message"),
    [
        ("one", "zero_shot", "protocol zero_shot: the adapter was trained on a tested data set"),
        ("other", "in_domain", "protocol in_domain: the adapter was not trained on the tested data sets"),
        ("other", "transfer", "protocol transfer: it trains on the other tasks, and --adapter trains nothing"),
    ],
)
def test_a_protocol_that_an_adapter_cannot_have_is_refused(
    name: str, asked_for: str, message: str, data: Path, small: Path, adapter: Path, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=message):
        job_of(data, name, small, adapter, tmp_path, asked_for)


def test_an_image_trained_on_under_another_name_is_no_zero_shot(
    data: Path, small: Path, adapter: Path, tmp_path: Path
) -> None:
    strict = job_of(data, "copy", small, adapter, tmp_path, "zero_shot")
    refused = r"1 of the 15 images of copy/test are among those that the adapter was trained on, pixel for pixel"
    with pytest.raises(RequestError, match=refused):
        run_all([strict], lambda text: None)
    assert not (strict.folder / "predictions.parquet").exists()
    run_all([dataclasses.replace(strict, protocol=None)], lambda text: None)
    record = read_json(strict.folder / "record.json")
    assert (record["protocol"], record["tasks"]["copy"]["protocol"]) == ("in_domain", "in_domain")
    assert record["leaks"]["overlaps"][0]["images"] == {"total": 15, "exact": 1}
    with pytest.raises(RequestError, match=refused):  # of what is there, too
        run_all([strict], lambda text: None)


def test_what_an_adapter_has_not_seen_is_zero_shot(data: Path, small: Path, adapter: Path, tmp_path: Path) -> None:
    job = job_of(data, "other", small, adapter, tmp_path, "zero_shot")
    run_all([job], lambda text: None)
    assert read_json(job.folder / "record.json")["protocol"] == "zero_shot"


def test_without_its_hashes_nothing_is_called_zero_shot(data: Path, small: Path, adapter: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(adapter, mine)
    (mine / SEEN).unlink()
    assert job_of(data, "other", small, mine, tmp_path).spec.protocol == "unknown"
    with pytest.raises(RequestError, match=f"not known: .* has no medbench.json, or no {SEEN}"):
        job_of(data, "other", small, mine, tmp_path, "zero_shot")
    (mine / SEEN).write_text("")
    with pytest.raises(WorkError, match=f"{SEEN}: is empty"):
        job_of(data, "other", small, mine, tmp_path)
    (mine / SEEN).write_text("../../etc\n")
    with pytest.raises(WorkError, match=f"{SEEN} line 1: expected the sha256 of an image's pixels"):
        job_of(data, "other", small, mine, tmp_path)


def test_a_limit_that_leaves_one_class_is_refused(data: Path, small: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"task one: --limit 1 leaves only items of class '\w+', from which nothing"):
        do(card(data, "one"), small, tmp_path, "none", limit=1)


def test_images_that_nearly_match_are_said(
    data: Path, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data, tmp_path / "data")
    images = tmp_path / "data"
    with Image.open(images / "one" / "images" / "train-3.png") as image:
        image.resize((60, 72)).save(images / "other" / "images" / "test-4.png")
    folder = do(card(images, "other"), small, tmp_path / "runs", train_tasks=[[str(card(images, "one"))]])
    assert read_json(folder / "record.json")["protocol"] == "zero_shot"
    assert "1 of 15 images of other/test nearly match images of one/train" in capsys.readouterr().err
