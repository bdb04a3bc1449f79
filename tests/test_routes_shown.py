"""`medbench routes`: the figures follow from the counts, the pictures show something, bad requests are one line."""

import json
import shutil
import xml.etree.ElementTree as ET
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Toy, make_toy
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from safetensors.torch import save_file
from scipy.spatial.distance import jensenshannon
from test_run_common import do, jobs_of, loaded, request

from medbench.__main__ import main
from medbench.backbones.clip import load_clip
from medbench.backbones.registry import get_backbone
from medbench.errors import RequestError, WorkError
from medbench.results.route_plots import COLOURS, expert_colours, plot_routes
from medbench.results.route_summary import consistency, entropy, layer_name, start_words, summary
from medbench.results.routes import LayerUse, Routes, Segments, TaskUse, find_run, read_routes, write_routes
from medbench.results.spectra import backbone_folders, chosen_layers, read_spectra, tensor_of

KINDS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_toy(tmp_path_factory.mktemp("routes"), train=8, test=4)


@pytest.fixture(scope="module")
def routed(small: Toy, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; not to be changed."""
    return do(small, tiny, tmp_path_factory.mktemp("runs"), "spectral_moe", settings={})


@pytest.fixture
def mine(routed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(routed, tmp_path / "runs" / routed.name))


def called(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["routes", *map(str, words)])
    printed = capsys.readouterr()
    return int(end.value.code or 0), printed.out, printed.err


def made_up(tasks: int, layers: int = 2, experts: int = 4, router: str = "topk", vision: bool = False) -> Routes:
    """Routes of `tasks` tasks, each with its own use of the experts."""
    draw = np.random.default_rng(0)
    names = [f"model.language_model.layers.{n}.{kind}" for n in range(layers) for kind in KINDS]
    names += [f"model.visual.blocks.{n}.attn.qkv" for n in range(layers)] if vision else []

    def use() -> LayerUse:
        mass = draw.dirichlet(np.full(experts, 2.0)) * 1000
        return LayerUse(1000, tuple(int(2 * m) for m in mass), tuple(mass.tolist()))

    found = {f"task_{t}": TaskUse("test", 9, 1000, {name: use() for name in names}) for t in range(tasks)}
    return Routes(experts, router, 2, None, found)


def test_the_summary_follows_from_the_counts(mine: Path) -> None:
    routes = made_up(2)
    write_routes(mine, routes)
    found = summary(mine)
    assert json.loads(json.dumps(found))["experts"] == 4
    for task, use in routes.tasks.items():
        shares = {name: np.array(layer.slots) / sum(layer.slots) for name, layer in use.layers.items()}
        about = found["tasks"][task]
        assert about["share"] == pytest.approx(np.mean(list(shares.values()), axis=0))
        assert sum(about["share"]) == pytest.approx(1)
        q = np.mean([share for name, share in shares.items() if name.endswith("q_proj")], axis=0)
        assert about["groups"]["q_proj"] == {"share": pytest.approx(q.tolist()), "most_used": int(q.argmax())}
        for name, share in shares.items():
            expected = -(share * np.log(share)).sum() / np.log(4)
            assert about["layers"][name]["entropy"] == pytest.approx(expected)
    write_routes(mine, made_up(1, router="softmax"))
    soft = summary(mine)
    layer = next(iter(soft["tasks"]["task_0"]["layers"].values()))
    assert (soft["measure"], layer["share"]) == (
        "gate mass",
        pytest.approx([m / 1000 for m in layer["mass"]], abs=1e-5),
    )


def test_the_mean_start_is_that_of_the_slots(mine: Path) -> None:
    layers = {
        "a.0.q_proj": LayerUse(8, (16, 0, 0, 0), (8.0, 0, 0, 0)),
        "a.0.o_proj": LayerUse(8, (0, 0, 0, 16), (0, 0, 0, 8.0)),
    }
    segments = Segments("spectral", 2, {"a.0.q_proj": 16, "a.0.o_proj": 32}, {16: (0, 4, 8, 12), 32: (0, 8, 16, 24)})
    write_routes(mine, Routes(4, "topk", 2, segments, {"t": TaskUse("test", 1, 8, layers)}))
    found = summary(mine)
    assert (found["tasks"]["t"]["mean_start"], found["segments"]["mean_start"]) == ((0 + 0.75) / 2, 0.375)
    assert found["segments"]["words"] == ["0/4", "1/4", "2/4", "3/4"]
    principal = Segments("principal", 2, segments.values, {16: (0, 2, 4, 6), 32: (0, 2, 4, 6)})
    assert start_words(principal, 4) == ["0-1", "2-3", "4-5", "6-7"]
    minor = Segments("minor", 2, segments.values, {16: (14, 12, 10, 8), 32: (30, 28, 26, 24)})
    assert start_words(minor, 4)[0] == f"{(14 / 16 + 30 / 32) / 2:.2f}"


def test_consistency_is_scipys_jensen_shannon_distance() -> None:
    draw = np.random.default_rng(1)
    a, b, c = ({f"l{n}": draw.integers(0, 50, 8) * draw.integers(0, 2, 8) + draw.integers(0, 2) for n in range(20)}
               for _ in range(3))  # fmt: skip
    found = consistency(a, b)
    for name, value in found.layers.items():
        if a[name].sum() and b[name].sum():
            assert value == pytest.approx(jensenshannon(a[name], b[name], base=2), abs=1e-7)
        assert value <= consistency(a, c).layers[name] + consistency(c, b).layers[name] + 1e-12
    assert found.mean == pytest.approx(np.mean(list(found.layers.values())))
    assert consistency(a, a).mean == 0
    assert consistency(b, a) == found
    with pytest.raises(ValueError, match="different layers"):
        consistency(a, {"other": [1, 2]})


def test_entropy_lies_between_one_expert_and_balance() -> None:
    assert entropy(np.array([0.0, 1.0, 0.0])) == 0
    assert entropy(np.full(6, 1 / 6)) == pytest.approx(1)
    assert 0 < entropy(np.array([0.1, 0.9])) < 1


def test_layers_are_named_for_people() -> None:
    names = ["model.visual.blocks.11.attn.qkv", "model.language_model.layers.2.mlp.up_proj", "head"]
    assert [str(layer_name(name)) for name in names] == ["vision 11 / qkv", "layer 2 / up_proj", "head"]
    assert [layer_name(name).matrix for name in names] == ["vision qkv", "up_proj", "head"]


def test_a_run_is_shown_and_drawn(mine: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = called(capsys, mine, "--backbone", tiny)
    assert (code, err) == (0, "")
    short = mine.name[:12]
    names = [f"{kind}-{short}.{form}" for kind in ("routes", "spectrum") for form in ("png", "svg")]
    assert all(str(mine / name) in out for name in names)
    assert "3/4" in out
    assert "(balanced)" in out
    first = {name: (mine / name).read_bytes() for name in names}
    for name in names:
        if name.endswith("png"):
            with Image.open(mine / name) as image:
                assert image.width > 600
                assert image.height > 300
                assert len(image.convert("RGB").getcolors(2**20) or []) > 50
        else:
            assert ET.parse(mine / name).getroot().tag.endswith("svg")
    code, out, err = called(
        capsys, mine.parent / mine.name[:6], "--json", "--out", tmp_path / "new", "--backbone", tiny
    )
    assert (code, err) == (0, "")
    (run,) = json.loads(out)["runs"]
    assert (run["run"], run["files"]) == (mine.name, [str(tmp_path / "new" / name) for name in names])
    assert {name: (tmp_path / "new" / name).read_bytes() for name in names} == first


def test_a_spectrum_that_cannot_be_drawn_is_said(
    mine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = called(capsys, mine, "--json")
    assert code == 0
    assert [Path(path).name[:7] for path in json.loads(out)["runs"][0]["files"]] == ["routes-"] * 2
    assert err.startswith("no spectrum drawn: unknown backbone 'tiny'")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RequestError, match=r"qwen2\.5-vl-7b are not on this machine"):
        backbone_folders(mine, "qwen2.5-vl-7b")
    code, _, err = called(capsys, mine, "--backbone", "nano-vl")
    assert code == 2
    assert "holds other weights than the run's" in err


@pytest.mark.parametrize(("tasks", "panels"), [(1, 1), (2, 3), (3, 3), (6, 6)])
def test_every_task_has_a_panel_and_two_have_a_difference(
    mine: Path, tasks: int, panels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_routes(mine, made_up(tasks, vision=True))
    drawn: list[Any] = []
    monkeypatch.setattr("medbench.results.route_plots.save", lambda figure, out, name: drawn.append(figure) or [])
    plot_routes(summary(mine), mine, "x")
    titles = [axes.get_title() for axes in drawn[0].axes if axes.get_title()]
    assert len(titles) == panels
    assert titles[:tasks] == [f"task_{n}" for n in range(tasks)]
    FigureCanvasAgg(drawn[0]).draw()
    texts = [text for axes in drawn[0].axes for text in [*axes.texts, axes.title]]
    panes = [axes for axes in drawn[0].axes if axes.get_label() != "<colorbar>" and not axes.get_title()]
    texts += [text for axes in panes for text in [*axes.get_yticklabels(), *axes.get_xticklabels()]]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    whole = drawn[0].bbox
    assert all(box.x0 >= 0 and box.x1 <= whole.x1 and box.y0 >= 0 and box.y1 <= whole.y1 for box in boxes)
    overlapping = [(a, b) for a, b in combinations(boxes, 2) if a.shrunk(0.8, 0.8).overlaps(b.shrunk(0.8, 0.8))]
    assert overlapping == []


def test_many_experts_have_colours_of_their_own() -> None:
    assert expert_colours(8) == list(COLOURS)
    assert len({tuple(colour) for colour in expert_colours(16)}) == 16


def test_spectra_are_those_of_the_models_weights(routed: Path, tiny: Path) -> None:
    values = read_routes(routed).segments.values  # type: ignore[union-attr]
    layers = chosen_layers(list(values))
    assert [str(layer_name(layer)) for layer in layers] == [
        *("layer 0 / q_proj", "layer 1 / q_proj", "layer 0 / down_proj", "layer 1 / down_proj")
    ]
    vlm = loaded(tiny, None)
    for layer, found in read_spectra({"": tiny}, layers, values).items():
        expected = np.linalg.svd(vlm.base.get_submodule(layer).weight.numpy(), compute_uv=False)
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    with pytest.raises(RequestError, match=r"no weight of layer a\.b\.c"):
        read_spectra({"": tiny}, ["a.b.c"], {})
    with pytest.raises(RequestError, match="not the run's"):
        read_spectra({"": tiny}, layers, values | {layers[0]: 7})
    keys = ["vision.layers.0.q_proj.weight", "text.layers.0.q_proj.weight"]
    assert tensor_of("model.text.layers.0.q_proj", keys) == keys[1]
    assert tensor_of("model.other.layers.0.q_proj", keys) is None


def test_runs_without_routes_say_why(
    mine: Path, small: Toy, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = do(small, tiny, tmp_path / "plain", "none", settings={}, budget=None)
    assert not (plain / "routes.json").exists()
    assert called(capsys, plain)[::2] == (2, f"medbench: {plain}: no routes.json: method none has no router\n")
    (mine / "routes.json").unlink()
    code, out, err = called(capsys, mine, plain)
    assert (code, out) == (2, "")
    assert "it was run before expert use was stored; move the folder away and run it again: " in err
    (mine / "record.json").unlink()
    assert "the run is incomplete" in called(capsys, mine)[2]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c | {"version": 2}, "version 2, this medbench reads 1"),
        (lambda c: [c], "version None"),
        (lambda c: c | {"experts": 5}, "expected layers of 5 experts"),
        (lambda c: c | {"tasks": {"toy": {"split": "test"}}}, "tasks.toy.questions: Field required"),
        (lambda c: c | {"segments": c["segments"] | {"starts": {}}}, "expected the starts of 4 experts"),
    ],
)
def test_broken_routes_are_named(mine: Path, damage: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = mine / "routes.json"
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    code, out, err = called(capsys, mine)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert f"{path}: " in err
    assert message in err
    path.write_bytes(b"{")
    with pytest.raises(WorkError, match="not readable as JSON"):
        read_routes(mine)


def test_runs_are_found_by_the_head_of_their_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place, name in (("results/runs", "aa11"), ("results/runs", "aa22"), ("results/measured", "ab33")):
        (tmp_path / place / name).mkdir(parents=True)
        (tmp_path / place / name / "spec.json").write_text("{}")
    assert find_run("aa1") == Path("results/runs/aa11")
    assert find_run("results/measured/ab") == Path("results/measured/ab33")
    assert find_run("results/measured") == Path("results/measured/ab33")
    assert find_run(str(tmp_path / "results/runs/aa22")) == tmp_path / "results/runs/aa22"
    for name, message in [
        *[("aa", "2 runs in results/runs \\(aa11, aa22\\)"), ("results/runs", "2 runs")],
        *[("ab33", "no run in results/runs whose hash begins so"), ("nowhere/aa", "no run folder")],
    ]:
        with pytest.raises(RequestError, match=message):
            find_run(name)


def test_an_adapter_that_is_only_tested_is_counted(routed: Path, small: Toy, tiny: Path, tmp_path: Path) -> None:
    asked = request(small, tiny, "spectral_moe", adapter=str(routed / "adapter"))
    (job,) = jobs_of(asked, tmp_path)
    from medbench.run import run

    assert read_routes(run(job)).tasks["toy"] == read_routes(routed).tasks["toy"]


def test_spectra_of_a_split_attention_are_those_of_its_layers() -> None:
    backbone = get_backbone("nano-clip")
    clip = load_clip(backbone, torch.float32, torch.device("cpu"))
    names = ("visual.transformer", "transformer")  # the second is also the end of the first
    layers = [f"{name}.resblocks.1.attn.{part}_proj" for name in names for part in ("q", "k", "v", "out")]
    weights = {layer: clip.base.get_submodule(layer).weight.numpy() for layer in layers}
    found = read_spectra({"": backbone.folder()}, layers, {layer: min(w.shape) for layer, w in weights.items()})
    for layer, weight in weights.items():
        assert found[layer] == pytest.approx(np.linalg.svd(weight, compute_uv=False), rel=1e-4, abs=1e-6)
    assert chosen_layers(layers[:4]) == layers[:1]


def test_each_tower_of_a_dual_encoder_is_read_from_its_own_folder(tmp_path: Path) -> None:
    layers = {"visual.trunk.layer.0.dense": 3.0, "text.transformer.layer.0.dense": 5.0}
    folders = {"visual.trunk.": tmp_path / "v", "text.transformer.": tmp_path / "t"}
    for folder, value in zip(folders.values(), layers.values(), strict=True):
        folder.mkdir()
        save_file({"layer.0.dense.weight": value * torch.eye(2)}, folder / "model.safetensors")
    found = read_spectra(folders, list(layers), dict.fromkeys(layers, 2))
    assert {layer: values.tolist() for layer, values in found.items()} == {k: [v, v] for k, v in layers.items()}
    with pytest.raises(RequestError, match="no weight of layer other"):
        read_spectra(folders, ["other.layer.0.dense"], {})
