"""A spec is a run's identity: all of it, only it, and the same wherever it is resolved."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Toy, make_toy
from pydantic import BaseModel

from medbench.catalog import Catalog, Settings
from medbench.errors import RequestError, WorkError
from medbench.methods import Training, parse_settings
from medbench.plan import Request, resolve
from medbench.spec import (
    SPEC_VERSION,
    BackboneSpec,
    BudgetSpec,
    DataSpec,
    Generation,
    MethodSpec,
    Part,
    RunSpec,
    Stage,
    load_spec,
    parse_spec,
)

DATA = DataSpec("toy", "train", 1, "a" * 64, digest="b" * 64, limit=3, shots=4)
SAMPLE = RunSpec(
    backbone=BackboneSpec("nano-vl", "sha256:0", processor={"max_pixels": 784}),
    method=MethodSpec("lora", "lora", {"r": 8, "targets": "language", "dropout": 0.5, "flag": True}, weights="c" * 64),
    budget=BudgetSpec("rank=8", 1000, 0.01, True),
    stages=(Stage((Part(DATA, 2.0),), Training()),),
    tests=(dataclasses.replace(DATA, split="test"),),
    protocol="in_domain",
    seed=3,
    dtype="float32",
    generation=Generation(4, 7),
    on_bad_item="skip",
    blind="test",
    prompts="single",
    trace="stage",
)
#: Another allowed value for the fields that take one of a few words.
WORDS = {
    ("backbone", "kind"): "clip",
    ("prompts",): None,  # there is one word
    ("method", "tuner"): "none",
    ("protocol",): "zero_shot",
    ("dtype",): "bfloat16",
    ("on_bad_item",): "fail",
    ("blind",): "train",
    ("trace",): "epoch",
    ("stages", 0, "training", "optimizer"): "sgd",
    ("stages", 0, "training", "schedule"): "linear",
    ("stages", 0, "mixture", 0, "data", "split"): "fit",
    ("tests", 0, "split"): "validation",
    ("version",): None,  # another version is refused, not read
}


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every leaf of plain JSON values, with its path."""
    if isinstance(value, dict | list) and value:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, key))
    else:
        yield path, value


LEAVES = [path for path, _ in leaves(SAMPLE.to_json()) if WORDS.get(path, "") is not None]


def changed(content: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    """A copy with the leaf at `path` changed to another value of its kind."""
    content = copy.deepcopy(content)
    inner: Any = content
    for key in path[:-1]:
        inner = inner[key]
    old = inner[path[-1]]
    if path in WORDS:
        new = WORDS[path]
    elif isinstance(old, bool):
        new = not old
    elif isinstance(old, int):
        new = 2 * old + 16  # batch_size stays a multiple of micro_batch_size only for the former
    elif isinstance(old, float):
        new = old / 2 + 0.125
    else:
        assert isinstance(old, str), f"{path} is {old!r} in the sample; give it a value that is not the default"
        new = old + "x"
    inner[path[-1]] = new
    if path[-1] == "micro_batch_size":
        inner["batch_size"] = new
    return content


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: ".".join(map(str, path)))
def test_every_field_is_part_of_the_identity(path: tuple[Any, ...]) -> None:
    base = SAMPLE.to_json()
    if path[-1] == "micro_batch_size":
        base["stages"][0]["training"]["batch_size"] = 2 * base["stages"][0]["training"]["micro_batch_size"] + 16
    other = parse_spec(changed(base, path), "here")
    assert other.identity != parse_spec(base, "here").identity


def fields_of(kind: Any) -> set[str]:
    return set(kind.model_fields) if issubclass(kind, BaseModel) else {f.name for f in dataclasses.fields(kind)}


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        (RunSpec, ()),
        (BackboneSpec, ("backbone",)),
        (MethodSpec, ("method",)),
        (BudgetSpec, ("budget",)),
        (Generation, ("generation",)),
        (Stage, ("stages", 0)),
        (Training, ("stages", 0, "training")),
        (Part, ("stages", 0, "mixture", 0)),
        (DataSpec, ("stages", 0, "mixture", 0, "data")),
        (DataSpec, ("tests", 0)),
    ],
)
def test_no_field_is_left_out_of_the_json(kind: Any, path: tuple[Any, ...]) -> None:
    """With the test above: whatever field is added to a class, its value is hashed."""
    content: Any = SAMPLE.to_json()
    for key in path:
        content = content[key]
    assert set(content) == fields_of(kind)


def test_identity_is_the_hash_of_the_file_and_it_comes_back(tmp_path: Path) -> None:
    SAMPLE.save(tmp_path)
    assert hashlib.sha256((tmp_path / "spec.json").read_bytes()).hexdigest() == SAMPLE.identity
    loaded = load_spec(tmp_path)
    assert loaded == SAMPLE
    assert loaded.identity == SAMPLE.identity


def test_the_order_of_mappings_does_not_matter() -> None:
    def reverse(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: reverse(value[key]) for key in reversed(value)}
        return [reverse(v) for v in value] if isinstance(value, list) else value

    backwards = reverse(SAMPLE.to_json())
    assert list(backwards) != list(SAMPLE.to_json())
    assert parse_spec(backwards, "here").identity == SAMPLE.identity


@pytest.mark.parametrize("version", [SPEC_VERSION + 1, 0, None, str(SPEC_VERSION)])
def test_a_spec_of_another_version_is_refused(tmp_path: Path, version: object) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(SAMPLE.to_json() | {"version": version}))
    with pytest.raises(WorkError, match=rf"spec\.json: spec version {version!r}, .* reads version {SPEC_VERSION}"):
        load_spec(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"sead": 1}, "sead"), ({"seed": "x"}, "seed"), ({"budget": {"request": ""}}, "budget.trainable")],
)
def test_a_wrong_spec_names_its_field(change: dict[str, Any], named: str) -> None:
    with pytest.raises(WorkError, match=f"^here: {named}"):
        parse_spec(SAMPLE.to_json() | change, "here")


def identities(toy: Toy, **more: Any) -> list[str]:
    request = Request(tasks=[str(toy.card)], data_root=toy.root, **more)
    return [spec.identity for spec in resolve(request, Catalog(Settings())).specs]


def test_the_place_of_data_and_backbone_is_not_part_of_the_identity(tmp_path: Path, tiny: Path) -> None:
    here, there = make_toy(tmp_path / "here"), make_toy(tmp_path / "there" / "deeper")
    moved = tmp_path / "elsewhere" / tiny.name
    shutil.copytree(tiny, moved)
    given = {"methods": ["lora"], "budget": "rank=8"}
    assert identities(here, backbone=str(tiny), **given) == identities(there, backbone=str(moved), **given)


def test_other_weights_and_other_questions_are_another_identity(toy: Toy, tmp_path: Path, tiny: Path) -> None:
    moved = tmp_path / "elsewhere" / tiny.name
    shutil.copytree(tiny, moved)
    given = {"methods": ["none"], "backbone": str(moved)}
    before = identities(toy, **given)
    with (moved / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    weights = identities(toy, **given)
    records = toy.records("test")
    records[0]["answer"] = "maybe"
    toy.write("test", records)  # the card has no digest, so the plan takes one
    assert len({*before, *weights, *identities(toy, **given)}) == 3


def test_settings_in_another_order_or_spelling_are_the_same_run(toy: Toy) -> None:
    spellings = [
        ["training.lr=1e-4", "adapter.rho=10"],
        ["adapter.rho=10.0", "training.lr=0.0001"],
        ["training.lr=1.0E-4", "adapter.rho=1e1"],
        ["training.lr=1e-4"],  # 10 is the recipe's own
    ]
    found = {tuple(identities(toy, settings=parse_settings(pairs))) for pairs in spellings}
    assert len(found) == 1
    assert identities(toy, settings=parse_settings(["training.lr=1e-4", "adapter.rho=11"])) != list(found.pop())


@pytest.mark.parametrize("method", ["none", "full_ft"])
def test_methods_without_a_rank_do_not_depend_on_the_budget(toy: Toy, method: str) -> None:
    budgets = [None, "rank=8", "2M", "1%", "paper", "like=lora:4"]
    assert len({tuple(identities(toy, methods=[method], budget=budget)) for budget in budgets}) == 1
    with pytest.raises(RequestError, match="budget '0'"):
        identities(toy, methods=[method], budget="0")


def test_none_runs_once_whatever_the_seeds_and_the_others_once_a_seed(toy: Toy) -> None:
    assert len(identities(toy, methods=["none", "lora"], seeds=(0, 1, 1, 2))) == 1 + 3
    assert identities(toy, methods=["none"], seeds=(5,)) == identities(toy, methods=["none"], seeds=(0,))


def test_protocol_says_what_was_trained_on(toy: Toy) -> None:
    def protocols(task: str = str(toy.card), **more: Any) -> list[str]:
        request = Request(tasks=[task], data_root=toy.root, **more)
        return [spec.protocol for spec in resolve(request, Catalog(Settings())).specs]

    other = {"train_tasks": [["phantom_vqa_ct"]]}
    assert protocols(methods=["lora", "none"]) == ["in_domain", "zero_shot"]
    assert protocols(methods=["lora"], **other) == ["zero_shot"]
    with pytest.raises(RequestError, match="toy would be trained on"):
        protocols(methods=["lora"], protocol="zero_shot")
    with pytest.raises(RequestError, match="nothing of toy would be trained on"):
        protocols(methods=["lora"], protocol="in_domain", **other)
    # nano-vl was pretrained on phantoms: they are not new to it, whatever the adapter saw.
    assert protocols("phantom_vqa", methods=["none"]) == ["in_domain"]
    with pytest.raises(RequestError, match="phantom_vqa is what backbone nano-vl was pretrained on"):
        protocols("phantom_vqa", methods=["none"], protocol="zero_shot")


def test_another_publication_of_a_data_set_is_not_zero_shot() -> None:
    request = Request(tasks=["vqa_rad"], methods=["lora"], train_tasks=[["vqa_rad_public"]])
    assert resolve(request, Catalog(Settings())).specs[0].protocol == "in_domain"


def test_two_cards_of_one_name_are_refused(toy: Toy, tmp_path: Path) -> None:
    content = toy.card_content()
    content["doc_to_text"] = "<image>Another prompt: {{question}}"
    other = tmp_path / "other" / "toy.yaml"
    other.parent.mkdir()
    other.write_text(yaml.safe_dump(content))
    for names in ([str(toy.card), str(other)], [str(toy.card)]):
        request = Request(tasks=names, train_tasks=[[str(other)]], data_root=toy.root)
        with pytest.raises(RequestError, match="two different cards are named toy"):
            resolve(request, Catalog(Settings()))


@pytest.mark.parametrize(
    "pair",
    [
        *("adapter.residual=flase", "training.lr=true", "adapter.eta=null", "adapter.num_experts=4.5"),
        *("adapter.rho=abc", "mixture.toy=1e-9", "processor.max_pixels=1", "training.epochs=1e9"),
    ],
)
def test_a_setting_of_another_type_is_refused(toy: Toy, pair: str) -> None:
    request = Request(tasks=[str(toy.card)], data_root=toy.root, settings=parse_settings([pair]))
    with pytest.raises(RequestError, match=pair.partition("=")[0].partition(".")[2]):
        resolve(request, Catalog(Settings()))
