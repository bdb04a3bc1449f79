"""Cards and recipes: every packaged one is right, a wrong one is named with its field, and none is ever executed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from conftest import Toy

from medbench.catalog import Catalog, Settings, packaged, read_yaml
from medbench.data.card import Card
from medbench.data.layouts import OPTIONS
from medbench.data.load import load_items
from medbench.data.readers import LAYOUTS
from medbench.errors import RequestError
from medbench.scoring.kinds import get_family

CATALOG = Catalog(Settings())
SIGN = "<image>"


@pytest.mark.parametrize("name", sorted(CATALOG.paths("tasks")))
def test_packaged_cards(name: str) -> None:
    card = CATALOG.task(name)
    if card.metadata.kind == "classification":
        assert (card.task, card.metric_list) == (None, ())  # what it must say: test_classification_data
        return
    assert {entry.metric for entry in card.metric_list} <= set(get_family(card.metadata.kind).METRICS)
    item = SimpleNamespace(question="Is it?", answer="Left Lung ", options=("Left Lung", "Liver"))
    assert re.match(r"Is it\?(\n|$)", card.render_prompt(item))
    assert card.render_target(item).casefold() == "left lung"
    if card.task is None:
        assert set(card.metadata.splits) == {"train"}
        return
    for split in ("training", "validation", "test"):
        ours = {"training": "train"}.get(split, split)
        assert (getattr(card, f"{split}_split") == ours) == (ours in card.metadata.splits)


@pytest.mark.parametrize("name", sorted(CATALOG.paths("methods")))
def test_packaged_recipes(name: str) -> None:
    method = CATALOG.method(name)
    assert method.name == name
    assert method.source
    assert method.description


def test_every_reader_has_its_options_checked() -> None:
    assert set(OPTIONS) == set(LAYOUTS)


def put(content: dict[str, Any], path: str, value: Any) -> None:
    """Sets `a.b.c`; None takes it away."""
    *outer, last = path.split(".")
    for key in outer:
        content = content[key]
    if value is None:
        del content[last]
    else:
        content[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("doc_to_text", None, "doc_to_text: is missing; add it"),
        ("metadata.licence", None, "metadata.licence: is missing; add it"),
        ("metadata.splits.test", None, "a task needs a 'test' split; one that is only trained on has 'name'"),
        ("metadata.splits", {"validation": {"count": 1}}, "metadata.splits: a task needs a 'test' split"),
        ("name", "toy", "should have either 'task' .* or 'name'"),
        ("task", None, "should have either 'task' .* or 'name'"),
        ("metric_list", None, "metric_list is missing; add it"),
        ("metadata.candidates", ["yes", "yes"], "metadata.candidates: should be different answers, none empty"),
        ("metadata.splits.test.count", None, "metadata.splits.test.count: is missing"),
        ("metadata.splits.dev", {"count": 3}, "metadata.splits.dev"),
        ("metadata.colour", "red", "metadata.colour: is not a field of this file; remove or rename it"),
        ("fewshot_split", "train", "fewshot_split: is not a field of this file"),
        ("metadata.version", "one", "metadata.version: Input should be a valid integer"),
        ("metadata.kind", "video", "metadata.kind: Input should be 'vqa'"),
        ("metadata.splits.train.count", 0, "metadata.splits.train.count: Input should be greater than 0"),
        ("metadata.splits.train.digest", "abc", "metadata.splits.train.digest: String should match"),
        ("metadata.closed", {"rule": "field"}, "metadata.closed: rule 'field' needs 'name' and 'value'"),
        ("metadata.holdout.fraction", 1.5, "metadata.holdout.fraction: Input should be less than 1"),
        ("metadata.access", "secret", "metadata.access: Input should be 'open', 'request'"),
        ("generation_kwargs.temperature", 0.7, "generation_kwargs.temperature"),
        ("generation_kwargs.do_sample", True, "generation_kwargs.do_sample"),
        ("doc_to_text", "{{question}}", f"doc_to_text: must begin with {SIGN}"),
        ("doc_to_text", f"{SIGN}{SIGN}{{{{question}}}}", f"doc_to_text: must begin with {SIGN} and hold it once"),
        ("doc_to_text", SIGN + "{{question", "doc_to_text: not a Jinja template"),
        ("doc_to_text", SIGN + "{{quesion}}", "doc_to_text: not a Jinja template .*'quesion' is undefined"),
        ("doc_to_target", "{{answer + 1}}", "doc_to_target: not a Jinja template"),
        ("metadata.layouts", {}, "metadata.layouts: Dictionary should have at least 1 item"),
        ("metadata.layouts", {"vqa_rad_jsn": {}}, "metadata: unknown layout 'vqa_rad_jsn'; did you mean vqa_rad_json?"),
        ("metadata.layouts", {"slake_folder": {}}, "metadata: slake_folder.language: Field required"),
        ("metadata.layouts", {"vqa_rad_json": {"files": {"test": "t"}}}, "vqa_rad_json.files: no file for .*'train'"),
        (
            "metadata.layouts",
            {"phantom": {"ask": "vqa", "modalities": ["ct"], "seed": 1, "test": 2}},
            "metadata: phantom.train: should be",
        ),
        ("metadata.layouts", {"hub_parquet": {"columns": {"img": "x"}}}, "metadata: hub_parquet.columns.img"),
        ("metadata.layouts", {"omnimedvqa": {}}, "metadata: omnimedvqa: there is only a 'test' split, not 'train'"),
        (
            "metadata.layouts",
            {"llava_conversations": {"files": {}}},
            "metadata: llava_conversations.files: no file for",
        ),
        (
            *("metadata.layouts", {"vqa_cp": {"files": {}, "images": "../x", "image_field": "i"}}),
            r"metadata: vqa_cp\.images: should be a path below the folder, without '\.\.', is '\.\./x'",
        ),
        (
            *("metadata.layouts", {"llava_conversations": {"files": {"train": "/etc/passwd"}}}),
            r"llava_conversations\.files\.train: should be a path below the folder",
        ),
        ("metadata.hub", {"id": "a/b", "layout": "hub_parquet"}, "hub.layout 'hub_parquet' is none of layouts"),
        ("task", "tox", "task: is 'tox' but the file is named 'toy'"),
    ],
)
def test_a_broken_card_names_file_and_field(toy: Toy, path: str, value: Any, message: str) -> None:
    content = toy.card_content()
    put(content, path, value)
    toy.write_card(content)
    with pytest.raises(RequestError, match=f"^{re.escape(str(toy.card))}: .*{message}") as caught:
        CATALOG.task(str(toy.card))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("tuner", "lorra", "unknown tuner 'lorra'; did you mean lora"),
        ("adapter.r", 8, r"adapter\.r comes from the budget; remove it"),
        ("adapter.alpha_over_n", 2, r"adapter\.alpha_over_n is no setting of this tuner; did you mean alpha_over_r"),
        ("adapter.dropout", float("inf"), r"adapter\.dropout should be a finite number, found inf"),
        ("training.lr", -1, "lr: Input should be greater than 0"),
        ("training.lr", float("inf"), "lr: Input should be a finite number"),
        ("training.momentum", 1, "momentum: is not a field of this file"),
        ("scales.huge", {}, "scales.huge"),
        ("source", None, "source: is missing; add it"),
        ("name", "other", "name: is 'other' but the file is named 'lora'"),
    ],
)
def test_a_broken_recipe_names_file_and_field(tmp_path: Path, path: str, value: Any, message: str) -> None:
    content = read_yaml(packaged("baselines") / "lora.yaml")
    put(content, path, value)
    file = tmp_path / "lora.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(RequestError, match=f"^{re.escape(str(file))}: .*{message}"):
        CATALOG.method(str(file))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2", "line 1: not YAML"),
        ("a: 1\nb: : 2", "line 2: not YAML"),
        ("- a\n- b", "expected a mapping of fields, found list"),
        ("", "expected a mapping of fields, found NoneType"),
        ("a: \0", r"not YAML \(special characters are not allowed\)"),
        ("a: 2024-13-45", r"not YAML \(month must be in 1..12\)"),
        ("a: !!python/object/apply:os.system ['touch hacked']", "line 1: not YAML"),
        ("a: !!python/name:os.system", "line 1: not YAML"),
        ("a: !function [x, y]", "line 1: not YAML"),
        ("a: \udcff", "cannot be read"),
    ],
)
def test_what_is_not_plain_yaml_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "x.yaml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(RequestError, match=f"^{re.escape(str(file))}.*{message}"):
        read_yaml(file)
    assert [path.name for path in tmp_path.iterdir()] == ["x.yaml"]


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(RequestError, match=r"pipe\.yaml: is no file"):
        read_yaml(tmp_path / "pipe.yaml")


def test_a_missing_card_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"gone\.yaml: cannot be read \(.*No such file"):
        CATALOG.task(str(tmp_path / "gone.yaml"))


def test_function_is_text(toy: Toy) -> None:
    (toy.card.parent / "evil.py").write_text("from pathlib import Path\nPath('hacked').touch()\n")
    text = toy.card.read_text()
    toy.card.write_text(re.sub("custom_dataset: .*", "custom_dataset: !function evil.dataset", text))
    assert CATALOG.task(str(toy.card)).custom_dataset == "evil.dataset"
    assert not (toy.card.parent / "hacked").exists()
    assert not Path("hacked").exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ question.__init__.__globals__ }}",
        "{{ self.__init__ }}",
        "{% for c in [].__class__.__base__.__subclasses__() %}{{ c }}{% endfor %}",
        "{{ ''.join.__self__.__class__ }}",
        "{% include '/etc/passwd' %}",
        "{{ question.format.__globals__ }}",
        "{{ range(999999999) | list }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(toy: Toy, template: str) -> None:
    content = toy.card_content()
    content["doc_to_text"] = SIGN + template
    toy.write_card(content)
    with pytest.raises(RequestError, match=r"toy\.yaml: doc_to_text: not a Jinja template"):
        CATALOG.task(str(toy.card))


def test_text_in_the_data_is_not_a_template(toy: Toy) -> None:
    card = CATALOG.task(str(toy.card))
    item = SimpleNamespace(question="{{ 1 + 1 }}", answer="{% raw %}", options=("{{ 2 }}",))
    assert card.render_prompt(item).startswith("{{ 1 + 1 }}\n")
    assert card.render_target(item) == "{% raw %}"


@pytest.mark.parametrize(
    ("path", "value", "counts"),
    [
        ("metadata.description", "other words", False),
        ("metadata.licence", "MIT", False),
        ("metadata.obtain", "ask", False),
        ("metadata.confidence.level", "L", False),
        ("metadata.version", 2, True),
        ("doc_to_text", SIGN + "{{question}} ", True),
        ("doc_to_target", "{{answer}}", True),
        ("generation_kwargs.max_gen_toks", 25, True),
        ("metadata.closed", {"rule": "yes_no"}, True),
        ("metadata.candidates", ["yes", "no", "maybe"], True),
        ("metadata.holdout.seed", 1, True),
        ("metadata.splits.train.count", 1, True),
        ("metadata.holdout", {"fraction": 0.1, "seed": 0}, False),  # the defaults, written out
    ],
)
def test_the_digest_is_over_what_can_change_a_figure(toy: Toy, path: str, value: Any, counts: bool) -> None:
    content = toy.card_content()
    before = Card.parse(content, toy.card).digest
    put(content, path, value)
    assert (Card.parse(content, toy.card).digest != before) == counts


def same_through_lm_eval(card: Card, root: Path | None, limit: int) -> None:
    """lm-eval's task gives our prompts, targets and scores."""
    from lm_eval.tasks import TaskManager

    from medbench.harness import process_results

    metadata = {"data_root": str(root)} if root else {}
    manager = TaskManager(include_path=str(packaged("tasks")), include_defaults=False, metadata=metadata)  # type: ignore[arg-type]
    task: Any = manager.load([card.name])["tasks"][card.name]
    items = load_items(card, "test", root).items
    docs = list(task.test_docs())
    assert [doc["id"] for doc in docs] == [item.id for item in items]
    seen = set()
    for item, doc in list(zip(items, docs, strict=True))[:limit]:
        assert task.doc_to_text(doc).removeprefix(SIGN).strip() == card.render_prompt(item)
        assert task.doc_to_target(doc).strip() == card.render_target(item)
        assert doc["type"] == item.type
        scores = task.process_results(doc, [item.answer.upper() + "."])
        assert scores == process_results(doc, [item.answer.upper() + "."])
        assert scores and set(scores.values()) == {1.0}
        assert set(task.process_results(doc, ["qqq"]).values()) <= {0.0}
        seen.add(item.type)
    assert seen == {"closed", "open"}
    assert {entry.metric for entry in card.metric_list} == set(task.aggregation())


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps what `datasets` writes out of the user's cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("own_cache")
def test_lm_eval_agrees_on_the_phantoms() -> None:
    same_through_lm_eval(CATALOG.task("phantom_vqa"), None, 40)


@pytest.mark.usefixtures("own_cache")
def test_lm_eval_agrees_on_slake(shared: Path) -> None:
    same_through_lm_eval(CATALOG.task("slake"), shared, 200)
