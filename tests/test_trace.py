"""A traced run is the untraced one, tested as it goes on: its weights, and at each stage what a run of its own says."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Toy, make_toy, second_task
from hypothesis import given
from hypothesis import strategies as st
from test_clip_common import build
from test_run_common import do
from test_zero_shot_common import do as do_clip
from test_zero_shot_common import draw_set

import medbench.steps
import medbench.trace
from medbench.catalog import Catalog
from medbench.errors import RequestError, WorkError
from medbench.methods import Training
from medbench.plan import Request, resolve
from medbench.results.record import read_record
from medbench.results.traces import TRACE, read_trace, stage_points, trace_points
from medbench.spec import Part, Stage
from medbench.trace import undisturbed
from medbench.training.order import stage_order

SETTINGS = {"adapter.dropout": 0.2, "training.epochs": 1.5, "training.checkpoint_steps": 1}


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_toy(tmp_path_factory.mktemp("toy"), train=6, test=4)


@pytest.fixture(scope="module")
def second(mine: Toy) -> str:
    return second_task(mine)


def sequence(mine: Toy, second: str, tiny: Path, out: Path, method: str = "lora", **more: Any) -> Path:
    both = [str(mine.card), second]
    asked: dict[str, Any] = {"tasks": both, "train_tasks": [[task] for task in both], "settings": dict(SETTINGS)}
    return do(mine, tiny, out, method, **asked | {"batch_size": 1} | more)


@pytest.fixture(scope="module")
def traced(mine: Toy, second: str, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sequence(mine, second, tiny, tmp_path_factory.mktemp("traced"), trace="epoch")


def weights(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def at(trace: pd.DataFrame, stage: int, task: str | None = None) -> pd.DataFrame:
    """The scores at the end of a stage, as a run's score table has them."""
    found = trace[trace["stage"] == stage]
    found = found[found["step"] == found["step"].max()]
    found = found if task is None else found[found["task"] == task]
    return found.drop(columns=["stage", "epoch", "step"]).reset_index(drop=True)


def scores(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "scores.parquet")


def same(one: pd.DataFrame, two: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one, two, check_dtype=False, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["lora", "spectral_moe"])
def test_the_weights_are_those_of_the_untraced_run(
    method: str, mine: Toy, second: str, tiny: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    plain = sequence(mine, second, tiny, tmp_path, method)
    own = method != "lora"
    folder = sequence(mine, second, tiny, tmp_path, method, trace="epoch") if own else request.getfixturevalue("traced")
    assert weights(folder) == weights(plain)
    assert folder.name != plain.name
    assert scores(folder).equals(scores(plain))
    losses = [[stage["losses"] for stage in read_record(f)["training"]["stages"]] for f in (folder, plain)]
    assert losses[0] == losses[1]
    assert not (plain / TRACE).exists()
    assert "trace" not in read_record(plain)


def test_every_stage_is_a_run_of_its_own(traced: Path, mine: Toy, second: str, tiny: Path, tmp_path: Path) -> None:
    trace = read_trace(traced)
    both = {"tasks": [str(mine.card), second], "batch_size": 1}
    first = do(mine, tiny, tmp_path, train_tasks=[[str(mine.card)]], settings=dict(SETTINGS), **both)
    bare = do(mine, tiny, tmp_path, "none", settings={}, **both)
    same(at(trace, 0), scores(bare))
    same(at(trace, 1), scores(first))
    same(at(trace, 2), scores(traced))
    moved = at(trace, 1)["p_yes"].dropna() - at(trace, 0)["p_yes"].dropna()
    assert moved.abs().max() > 1e-3  # the points are not all of one model


def test_the_points_are_the_ends_of_epochs_and_stages(traced: Path) -> None:
    # 12 items an epoch, 8 a step: an epoch is 1.5 steps, one and a half are 2.25, so 3 steps.
    expected = [(0, 0.0, 0), (1, 1.0, 2), (1, 1.5, 3), (2, 1.0, 5), (2, 1.5, 6)]
    trace, about = read_trace(traced), read_record(traced)["trace"]
    columns = ["stage", "epoch", "step"]
    assert list(trace[columns].drop_duplicates().itertuples(index=False, name=None)) == expected
    assert [tuple(point[name] for name in columns) for point in about["points"]] == expected
    assert [point["ends"] for point in about["points"]] == [True, False, True, False, True]
    assert trace.groupby([*columns, "task"]).size().tolist() == [8] * 10
    for point in about["points"]:
        here = trace[trace["step"] == point["step"]]
        for task, figures in point["tasks"].items():
            mean = here.loc[(here["task"] == task) & (here["type"] == "closed"), "closed"].mean()
            assert figures["metrics"]["closed_accuracy"]["value"] == pytest.approx(mean)


def test_killed_at_any_point_it_ends_as_an_unbroken_one(
    traced: Path, mine: Toy, second: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = medbench.trace.write_parquet, []
    left = [3, 1, 2, 1, 100]

    def dies(path: Path, table: pd.DataFrame) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        assert not path.exists(), "a part that is there was answered again"
        real(path, table)
        written.append(path)

    monkeypatch.setattr(medbench.trace, "write_parquet", dies)
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            sequence(mine, second, tiny, tmp_path, trace="epoch")
        left.pop(0)
    folder = sequence(mine, second, tiny, tmp_path, trace="epoch")
    assert len(written) == len(set(written)) == 4 * 2  # points but the last, tests, one chunk each
    assert weights(folder) == weights(traced)
    assert (folder / TRACE).read_bytes() == (traced / TRACE).read_bytes()
    assert {path.name for path in folder.iterdir()} == {path.name for path in traced.iterdir()}
    assert not (folder / "fit").exists()


def test_a_part_that_is_gone_is_said_and_a_trace_of_stages_has_no_epochs(
    traced: Path, mine: Toy, second: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(medbench.steps, "predict", dies)
        sequence(mine, second, tiny, tmp_path, trace="stage")
    part = next(tmp_path.glob("*/fit/trace/stage-1-step-3/other-0-of-1.parquet"))
    away = part.rename(tmp_path / "away")
    with pytest.raises(WorkError, match=r"stage-1-step-3/other-0-of-1\.parquet: this part of the trace is gone"):
        sequence(mine, second, tiny, tmp_path, trace="stage")
    assert not list(tmp_path.glob("*/record.json"))
    away.rename(part)
    stages, epochs = read_trace(sequence(mine, second, tiny, tmp_path, trace="stage")), read_trace(traced)
    pd.testing.assert_frame_equal(stages, epochs[epochs["step"].isin([0, 3, 6])].reset_index(drop=True))


def test_a_broken_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"trace\.parquet: is missing"):
        read_trace(tmp_path)
    (tmp_path / TRACE).write_bytes(b"PAR1")
    with pytest.raises(WorkError, match=r"trace\.parquet: not readable as parquet"):
        read_trace(tmp_path)
    pd.DataFrame({"stage": [1], "task": ["toy"]}).to_parquet(tmp_path / TRACE)
    with pytest.raises(WorkError, match=r"trace\.parquet: broken trace \(columns epoch, step, kind, id"):
        read_trace(tmp_path)


def test_a_classifier_is_traced_too(tmp_path: Path) -> None:
    for seed, name in enumerate(("shades", "tints")):
        draw_set(tmp_path, name, seed)
    build("native", tmp_path / "small")
    one, two = (tmp_path / "cards" / f"{name}.yaml" for name in ("shades", "tints"))
    asked: dict[str, Any] = {"tasks": [str(one), str(two)], "train_tasks": [[str(one)], [str(two)]]}
    plain, folder = (
        do_clip(one, tmp_path / "small", tmp_path / "out", "lora", trace=t, **asked) for t in (None, "epoch")
    )
    alone = do_clip(one, tmp_path / "small", tmp_path / "out", "lora", tasks=asked["tasks"], train_tasks=[[str(one)]])
    assert weights(folder) == weights(plain)
    trace = read_trace(folder)
    assert set(trace["kind"]) == {"classification"}
    same(at(trace, 1).drop(columns="probabilities"), scores(alone).drop(columns="probabilities"))
    same(at(trace, 2), scores(plain))


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    epochs=st.floats(0.1, 6),
    batch=st.integers(1, 16),
    weight=st.sampled_from([0.5, 1.0, 1.5]),
)
def test_points_of_a_stage_rise_to_its_last_step(sizes: list[int], epochs: float, batch: int, weight: float) -> None:
    training = Training(epochs=epochs, batch_size=batch, micro_batch_size=batch)
    per_epoch = sum(round(size * weight) for size in sizes)
    if not per_epoch:
        return
    steps = len(stage_order(sizes, [weight] * len(sizes), [1] * sum(sizes), epochs, batch, 0))
    points = stage_points(per_epoch, Stage((), training), every_epoch=True)
    places = [at for _, at in points]
    assert places == sorted(set(places))
    assert points[-1] == (epochs, steps)
    assert places[0] > 0
    for epoch, place in points[:-1]:
        assert epoch == int(epoch) <= epochs
        assert abs(place * batch - epoch * per_epoch) <= batch / 2
    assert stage_points(per_epoch, Stage((), training), every_epoch=False) == [(epochs, steps)]


def test_steps_of_stages_add_up() -> None:
    data: Any = {name: SimpleNamespace(task=name) for name in ("a", "b")}
    stages = []
    for name, epochs in (("a", 2.0), ("b", 1.0)):
        training = Training(epochs=epochs, batch_size=4, micro_batch_size=4)
        stages.append(Stage.__new__(Stage))
        object.__setattr__(stages[-1], "mixture", (Part.__new__(Part),))
        object.__setattr__(stages[-1].mixture[0], "data", data[name])
        object.__setattr__(stages[-1].mixture[0], "weight", 1.0)
        object.__setattr__(stages[-1], "training", training)
    spec: Any = SimpleNamespace(stages=stages, trace="epoch")
    points = trace_points(spec, lambda part: {"a": 8, "b": 12}[part.task])
    found = [(point.stage, point.epoch, point.step, point.at, point.ends) for point in points]
    assert found == [(0, 0.0, 0, 0, True), (1, 1.0, 2, 2, False), (1, 2.0, 4, 4, True), (2, 1.0, 7, 3, True)]


def test_testing_leaves_modes_random_states_and_forwards_as_they_were() -> None:
    model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(2, 2))
    model.train()
    model[1].eval()
    wrapped = lambda x: x + 1  # noqa: E731
    model.forward = wrapped  # as accelerate wraps it for autocast
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    expected = (random.random(), float(np.random.random()), float(torch.rand(())))
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    with pytest.raises(KeyError), undisturbed(model):
        assert not any(module.training for module in model.modules())
        assert "forward" not in vars(model)
        random.random(), np.random.random(), torch.rand(3)
        raise KeyError
    assert (random.random(), float(np.random.random()), float(torch.rand(()))) == expected
    assert [module.training for module in model.modules()] == [True, True, False]
    assert model.forward is wrapped


def test_what_trains_nothing_has_no_trace_and_blind_runs_are_refused(mine: Toy) -> None:
    def specs(**more: Any) -> list[Any]:
        asked = {"tasks": [str(mine.card)], "methods": ["none", "lora"], "data_root": mine.root, "trace": "stage"}
        return resolve(Request(**asked | more), Catalog()).specs

    none, lora = specs()
    assert (none.trace, lora.trace) == (None, "stage")
    assert "trace" not in none.to_json()
    assert lora.identity not in {spec.identity for spec in specs(trace=None)}
    for refused in ({"blind": "test"}, {"adapter": "somewhere"}):
        with pytest.raises(RequestError, match="a traced run is trained and sighted"):
            specs(**refused)
