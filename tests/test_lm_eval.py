"""Through lm-eval and through our runner: the same answers, the same likelihoods, the same figures; whose they are."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval
import pandas as pd
import pytest
from conftest import Toy, make_toy
from lm_eval.tasks import TaskManager
from test_family_common import cut_card, make_omni
from test_run_common import do

from medbench import harness
from medbench.catalog import packaged
from medbench.errors import RequestError
from medbench.files import folder_digest
from medbench.harness.evaluate import configs, plain
from medbench.results.record import read_record
from medbench.spec import load_spec

LIMIT, SIZE = 9, 3
#: Closed and open questions, multiple choice, reports, yes and no.
TASKS = ("toy", "omnimedvqa", "phantom_report", "phantom_yesno")
CHOICES = ("toy", "omnimedvqa", "phantom_yesno")


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Leaves out the description of the machine, for which lm-eval starts a dozen programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda storage: None)
        yield


@dataclass(frozen=True)
class World:
    """An adapter trained on the toy set, and what our runner made of it on all kinds of task."""

    toy: Toy
    tiny: Path
    trained: Path
    tested: Path

    def names(self) -> list[str]:
        cards = self.toy.card.parent
        return [str(cards / f"{name}.yaml") if (cards / f"{name}.yaml").exists() else name for name in TASKS]

    def answers(self, task: str) -> pd.DataFrame:
        found = pd.read_parquet(self.tested / "predictions.parquet")
        return found[found["task"] == task].reset_index(drop=True)

    def figures(self, task: str) -> dict[str, float]:
        metrics = read_record(self.tested)["tasks"][task]["metrics"]
        return {name: entry["value"] for name, entry in metrics.items() if entry["value"] is not None}


@pytest.fixture(scope="module")
def world(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    base = tmp_path_factory.mktemp("lm_eval")
    toy = make_toy(base, train=12, test=5)
    make_omni(toy.root)
    cut_card(toy.card.parent, "omnimedvqa", test=12)
    trained = do(toy, tiny, base / "trained", settings={"training.epochs": 3})
    world = World(toy, tiny, trained, trained)
    tested = do(
        *(toy, tiny, base / "tested"),
        **{"tasks": world.names(), "adapter": str(trained), "budget": None, "limit": LIMIT, "batch_size": SIZE},
    )
    return World(toy, tiny, trained, tested)


def asked(model: dict[str, Any], tasks: list[Any], manager: TaskManager | None = None, **more: Any) -> dict[str, Any]:
    """lm-eval's results, with samples."""
    manager = manager or TaskManager(include_defaults=False)
    results = lm_eval.simple_evaluate(model="medbench", model_args=model, tasks=tasks, task_manager=manager, **more)
    assert results is not None
    return dict(results)


def model_args(world: World, **more: Any) -> dict[str, Any]:
    return {"backbone": str(world.tiny), "adapter": str(world.trained), "batch_size": SIZE, "device": "cpu", **more}


@pytest.fixture(scope="module")
def results(world: World) -> dict[str, Any]:
    """All tasks in one call: by generation, and by likelihood those that have closed questions."""
    chosen = [name for name in world.names() if Path(name).stem in CHOICES]
    tasks = configs(world.names(), world.toy.root) + configs(chosen, world.toy.root, likelihood=True, limit=LIMIT)
    return asked(model_args(world), tasks, limit=LIMIT)


def figures_of(results: dict[str, Any], task: str) -> dict[str, float]:
    """A task's figures; those that are undefined (NaN here, None in our record) left out."""
    found = {name.removesuffix(",none"): value for name, value in results["results"][task].items()}
    numbers = {name: value for name, value in found.items() if isinstance(value, float) and not math.isnan(value)}
    return {name: value for name, value in numbers.items() if "_stderr" not in name}


def texts(results: dict[str, Any], task: str) -> list[str]:
    return [sample["resps"][0][0] for sample in results["samples"][task]]


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_those_of_our_runner(world: World, results: dict[str, Any], task: str) -> None:
    ours = world.answers(task)
    samples = results["samples"][task]
    assert [sample["doc"]["id"] for sample in samples] == list(ours["id"])
    assert len(samples) == LIMIT
    assert texts(results, task) == list(ours["prediction"])


def test_the_answers_are_no_constant(results: dict[str, Any]) -> None:
    assert len({text for task in TASKS for text in texts(results, task)}) > len(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_figures_are_those_of_our_runner(world: World, results: dict[str, Any], task: str) -> None:
    ours, found = world.figures(task), figures_of(results, task)
    assert found
    assert found == pytest.approx({name: ours[name] for name in found}, abs=1e-12)
    if task in CHOICES:
        chosen = figures_of(results, f"{task}_by_likelihood")
        # Of the toy set half is open: then the closed ones are batched otherwise, which float32 feels in the last bits.
        tolerance = 1e-6 if task == "toy" else 1e-12
        assert chosen == pytest.approx({name: ours[name] for name in chosen}, abs=tolerance)
        found |= chosen
    assert set(found) == set(ours)


@pytest.mark.parametrize("task", ["omnimedvqa", "phantom_yesno"])
def test_likelihoods_are_those_of_our_runner(world: World, results: dict[str, Any], task: str) -> None:
    from medbench.inference.predict import candidate_probabilities

    ours = world.answers(task)
    for sample, stored in zip(results["samples"][f"{task}_by_likelihood"], ours["probabilities"], strict=True):
        scores = [float(response[0][0]) for response in sample["resps"]]
        assert json.loads(candidate_probabilities(sample["doc"]["candidates"], scores)) == json.loads(stored)


def test_the_cards_themselves_give_the_same(world: World, results: dict[str, Any], tmp_path: Path) -> None:
    manager = TaskManager(include_path=str(packaged("tasks")), include_defaults=False)
    found = asked(model_args(world), ["phantom_yesno"], manager, limit=LIMIT, apply_chat_template=True)
    assert texts(found, "phantom_yesno") == texts(results, "phantom_yesno")
    expected = figures_of(results, "phantom_yesno")
    there = figures_of(found, "phantom_yesno")
    assert there and there == {name: expected[name] for name in there}


def test_the_results_say_whose_they_are(world: World, results: dict[str, Any]) -> None:
    config = plain(results)["config"]
    about, spec = config["medbench"], load_spec(world.trained)
    assert (config["model"], config["model_dtype"], config["model_sha"]) == ("medbench", "float32", about["identity"])
    assert about["run"] == spec.identity == world.trained.name
    assert about["adapter_weights"] == folder_digest(world.trained / "adapter", "*.safetensors")
    assert about["backbone_weights"] == spec.backbone.weights
    assert (about["backbone"], about["method"], about["seed"], about["trained_on"]) == ("tiny", "lora", 0, ["toy"])
    json.dumps(config, allow_nan=False)


def test_an_adapter_changes_answers_and_identity(world: World, results: dict[str, Any]) -> None:
    tasks = configs([str(world.toy.card)], world.toy.root)
    bare = asked(model_args(world, adapter=None), tasks, limit=LIMIT)
    assert texts(bare, "toy") != texts(results, "toy")
    about, other = (found["config"]["medbench"] for found in (bare, results))
    assert (about["method"], about["adapter_weights"], about["run"]) == ("none", None, None)
    assert about["identity"] != other["identity"]
    assert about["backbone_weights"] == other["backbone_weights"]


METHODS: dict[str, dict[str, Any]] = {
    "full_ft": {},
    "full_ft_moe": {"settings": {"adapter.num_experts": 2}},
    "spectral_moe": {},
    "lora": {"blind": "test"},
    "none": {"dtype": "bfloat16"},
}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_served_as_it_was_tested(world: World, tmp_path: Path, method: str) -> None:
    folder = do(world.toy, world.tiny, tmp_path, method, batch_size=SIZE, **METHODS[method])
    tasks = configs([str(world.toy.card)], world.toy.root)
    found = asked({"backbone": str(world.tiny), "adapter": str(folder), "device": "cpu"}, tasks)
    ours = pd.read_parquet(folder / "predictions.parquet")
    assert texts(found, "toy") == list(ours["prediction"])
    metrics = read_record(folder)["tasks"]["toy"]["metrics"]
    figures = figures_of(found, "toy")
    assert figures and figures == pytest.approx({name: metrics[name]["value"] for name in figures}, abs=1e-12)
    about = found["config"]["medbench"]
    assert (about["run"], about["blind"]) == (folder.name, METHODS[method].get("blind"))
    assert about["adapter_weights"] == read_record(folder)["weights"]["adapter"]


def test_an_adapters_folder_is_served_without_its_run(world: World, results: dict[str, Any], tmp_path: Path) -> None:
    alone = shutil.copytree(world.trained / "adapter", tmp_path / "alone")
    lm = harness.MedbenchLM(**model_args(world, adapter=str(alone)))
    about, other = lm.served.about, results["config"]["medbench"]
    assert (about["run"], about["trained_on"]) == (None, ["toy"])
    assert about["adapter_weights"] == other["adapter_weights"]
    with pytest.raises(RequestError, match="unknown backbone 'tiny'"):  # which it names, and which lies in a folder
        harness.MedbenchLM(adapter=str(alone))
