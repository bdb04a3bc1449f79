"""The clinical plug-ins: what they refuse, CheXbert on a network of the same build, the others on stand-ins.

Their weights are not at hand, so no real figure of theirs is tested.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import Toy
from test_report_common import GOLD, SAID, frame
from test_scoring_common import caller, items_of, write_lines

from medbench.errors import RequestError, WorkError
from medbench.files import file_digest
from medbench.scoring.kinds import estimate_kind
from medbench.scoring.report import METRICS, implementations, score
from medbench.scoring.report_plugins import PLUGINS, Requested, plugin_implementations, request_plugins

estimate = partial(estimate_kind, "report")

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *["the", "heart", "is", "normal", "in", "size", "lungs", "are", "clear", "no", "acute", ".", ":"],
]


@pytest.fixture(scope="module")
def chexbert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CheXbert's files with a small random network."""
    import torch
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("chexbert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = torch.nn.Module()
    model.bert = BertModel(config)
    model.linear_heads = torch.nn.ModuleList(torch.nn.Linear(16, 4 if n < 13 else 2) for n in range(14))
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    state["module.bert.embeddings.position_ids"] = torch.arange(512)[None]
    torch.save({"model_state_dict": state, "epoch": 3}, folder / "chexbert.pth")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    config.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("chexbart=x", "unknown plug-in 'chexbart'; did you mean chexbert?"),
        ("chexbert", "chexbert: name the folder of its weights: chexbert=DIR, with chexbert.pth and vocab.txt"),
        ("chexbert=/nowhere", "chexbert: /nowhere/chexbert.pth is missing; get chexbert.pth of the hub's Stanford"),
        ("radgraph=/x", "radgraph: its package radgraph is not installed; pip install 'medbench[radgraph]'"),
        ("ratescore=/x", "ratescore: its package RaTEScore is not installed; pip install 'medbench[ratescore]'"),
        ("green=/x", "green: its package green_score is not installed; pip install green-score"),
    ],
)
def test_what_cannot_run_is_refused(word: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("radgraph", "RaTEScore", "green_score"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RequestError, match=f"^{re.escape(message)}"):
        request_plugins([word])


def test_what_is_not_asked_for_is_not_listed() -> None:
    figures = estimate([score(frame([GOLD], [SAID]))], resamples=0)
    assert set(figures) == set(METRICS)
    assert set(implementations()) <= set(METRICS)
    assert not {name for plugin in PLUGINS.values() for name in plugin.measures} & set(METRICS)


def test_chexbert(chexbert_folder: Path) -> None:
    asked = request_plugins([f"chexbert={chexbert_folder}"])
    table = score(frame([GOLD, SAID, GOLD], [GOLD, GOLD, "."]), plugins=asked)
    figures = estimate([table], resamples=0)
    said, wanted, hits = (table[f"chexbert_{part}"].to_list() for part in ("said", "wanted", "hits"))
    assert hits[0] == said[0] == wanted[0] > 0
    assert (said[2], hits[2]) == (0, 0)  # without a word nothing is said
    assert figures["chexbert_f1"].value == pytest.approx(2 * sum(hits) / (sum(said) + sum(wanted)))
    assert (table["chexbert_5_said"] <= table["chexbert_said"]).all()
    assert "weights chexbert.pth" in plugin_implementations(asked)["chexbert_f1_5"]


def test_batches_do_not_change_chexberts_labels(chexbert_folder: Path) -> None:
    from medbench.scoring.report_models import chexbert

    golds = [f"{GOLD} {'no ' * (n % 7)}" for n in range(40)]
    alone = [chexbert(chexbert_folder, [g], [SAID], lambda done, total: None)["chexbert_wanted"][0] for g in golds]
    assert chexbert(chexbert_folder, golds, [SAID] * 40, lambda d, t: None)["chexbert_wanted"] == alone


def test_other_weights_are_named(chexbert_folder: Path, tmp_path: Path) -> None:
    import torch

    for name in ("vocab.txt", "config.json"):
        (tmp_path / name).write_bytes((chexbert_folder / name).read_bytes())
    for content in (b"no weights", None):
        path = tmp_path / "chexbert.pth"
        path.write_bytes(content) if content else torch.save({"model_state_dict": {"x": torch.ones(1)}}, path)
        with pytest.raises(WorkError, match=r"chexbert\.pth: not CheXbert's weights"):
            score(frame([GOLD], [SAID]), plugins=request_plugins([f"chexbert={tmp_path}"]))


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, **content: Any) -> None:
    made = ModuleType(module)
    vars(made).update(content)
    monkeypatch.setitem(sys.modules, module, made)


def overlap(wanted: Sequence[str], given: Sequence[str]) -> list[float]:
    """A metric to stand in: the share of the reference's words that are said."""
    pairs = zip(wanted, given, strict=True)
    return [len(set(w.split()) & set(g.split())) / len(set(w.split())) for w, g in pairs]


def test_the_packages_are_called_as_they_want_and_only_with_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class F1RadGraph:
        """radgraph 0.1.18."""

        def __init__(self, reward_level: str, model_type: str, model_cache_dir: str, cuda: int) -> None:
            assert (reward_level, model_type, model_cache_dir) == ("partial", "radgraph-xl", str(tmp_path))

        def __call__(self, refs: list[str], hyps: list[str]) -> tuple[float, list[float], list[Any], list[Any]]:
            return 0.0, overlap(refs, hyps), [], []

    class RaTEScore:
        """RaTEScore 0.6."""

        def __init__(self, bert_model: str, eval_model: str, batch_size: int, use_gpu: bool) -> None:
            assert Path(bert_model).parent == Path(eval_model).parent == tmp_path

        def compute_score(self, candidate_list: list[str], reference_list: list[str]) -> list[float]:
            return overlap(reference_list, candidate_list)

    class GREEN:
        """green-score."""

        def __init__(self, model_name: str, output_dir: str) -> None:
            assert model_name == str(tmp_path)
            (Path(output_dir) / "results.json").write_text("{}")

        def __call__(self, refs: list[str], hyps: list[str]) -> tuple[float, float, list[float], str, Any]:
            return 0.0, 0.0, overlap(refs, hyps), "", None

    stand_in(monkeypatch, "radgraph", F1RadGraph=F1RadGraph)
    stand_in(monkeypatch, "RaTEScore", RaTEScore=RaTEScore)
    stand_in(monkeypatch, "green_score", GREEN=GREEN)
    asked = []
    for name in ("radgraph", "ratescore", "green"):
        for file in PLUGINS[name].files(tmp_path):
            path = tmp_path / file.replace("*", "model")
            path.parent.mkdir(exist_ok=True)
            path.write_text("{}")
        asked.append(Requested(PLUGINS[name], tmp_path))
    golds, said = [GOLD, GOLD, *["no effusion"] * 70], [GOLD, "...", *["no opacity"] * 70]
    figures = estimate([score(frame(golds, said), plugins=asked)], resamples=0)
    for name in ("radgraph_f1", "ratescore", "green"):
        assert figures[name].value == pytest.approx((1 + 0 + 70 / 2) / 72), name
        assert figures[name].n == 72
    assert not list(Path.cwd().glob("results.json")) and not (tmp_path / "results.json").exists()
    said_of = plugin_implementations(asked)["ratescore"]
    assert re.search(
        r"RaTE-NER-Deberta/config\.json [0-9a-f]{12}, .*BioLORD-2023-C/model\.safetensors [0-9a-f]{12}$", said_of
    )


def test_a_models_configuration_without_its_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "green_score")
    monkeypatch.setattr("medbench.scoring.report_plugins.find_spec", lambda name: name)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RequestError, match=r"^green: .*/\*\.safetensors is missing; get the hub's StanfordAIMI/GREEN"):
        request_plugins([f"green={tmp_path}"])
    (tmp_path / "pytorch_model.bin").write_bytes(b"weights")  # as older ones are stored
    assert "pytorch_model.bin" in request_plugins([f"green={tmp_path}"])[0].implementation


@pytest.fixture
def reports(toy: Toy) -> Toy:
    """The toy set as one whose answers are reports."""
    content = toy.card_content()
    metadata: Any = content["metadata"]
    metadata |= {"kind": "report", "closed": {"rule": "none"}}
    toy.write_card(content)
    return toy


@pytest.mark.parametrize("profile", ["medbench", "all"])
def test_the_command_scores_with_a_plugin(
    capfd: pytest.CaptureFixture[str], chexbert_folder: Path, reports: Toy, tmp_path: Path, profile: str
) -> None:
    items = items_of(reports)
    said = ["." if n % 3 else item.answer for n, item in enumerate(items)]
    answers = [{"id": item.id, "prediction": text} for item, text in zip(items, said, strict=True)]
    file, call = write_lines(tmp_path / "said.jsonl", answers), caller(capfd)
    words = ("score", file, "--task", reports.card, "--data-root", reports.root, "--profile", profile, "--json")
    with_it = json.loads(call(*words, "--plug-in", f"chexbert={chexbert_folder}").out)
    plain = json.loads(call(*words).out)
    if profile == "all":
        assert list(with_it["profiles"]) == ["medbench"]
        with_it, plain = with_it["profiles"]["medbench"], plain["profiles"]["medbench"]
    own = {"chexbert_f1", "chexbert_f1_5"}
    assert {name: figure for name, figure in with_it["metrics"].items() if name not in own} == plain["metrics"]
    assert set(with_it["implementations"]) - set(plain["implementations"]) == own <= set(with_it["metrics"])
    implementation = with_it["implementations"]["chexbert_f1"]
    assert implementation.startswith("Smit et al., EMNLP 2020")
    assert f"chexbert.pth {file_digest(chexbert_folder / 'chexbert.pth')[:12]}" in implementation
    table = score(
        frame([item.answer for item in items], said), plugins=request_plugins([f"chexbert={chexbert_folder}"])
    )
    found, expected = with_it["metrics"]["chexbert_f1"], estimate([table], resamples=0)["chexbert_f1"]
    assert (found["value"], found["n"], found["clusters"]) == (pytest.approx(expected.value), 24, 12)
    assert 0 < found["low"] <= found["value"] <= found["high"] <= 1
    assert found["value"] < 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--task", "phantom_report", "--plug-in", "chexbart=x"), "unknown plug-in 'chexbart'; did you mean chexbert"),
        (("--task", "phantom_report", "--plug-in", "chexbert=/nowhere"), "chexbert: /nowhere/chexbert.pth is missing"),
        (("--task", "phantom_vqa", "--plug-in", "CHEXBERT"), "scores reports, and task phantom_vqa is of kind vqa"),
        (("--task", "phantom_yesno", "--profile", "all", "--plug-in", "CHEXBERT"), "phantom_yesno is of kind halluc"),
        (("--task", "phantom_report", *("--plug-in", "CHEXBERT") * 2), "plug-in chexbert: asked for more than once"),
    ],
)
def test_a_plugin_that_does_not_fit_is_one_line(
    capfd: pytest.CaptureFixture[str], chexbert_folder: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    file = write_lines(tmp_path / "said.jsonl", [{"id": "x", "prediction": "yes"}])
    asked = [f"chexbert={chexbert_folder}" if word == "CHEXBERT" else word for word in words]
    result = caller(capfd)("score", file, *asked)
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(f"medbench: .*{re.escape(message)}.*\n", result.err), result.err


def test_pairs_take_no_plugin(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = write_lines(tmp_path / "pairs.jsonl", [{"gold": "a", "prediction": "a", "type": "open"}])
    result = caller(capfd)("score", "--pairs", file, "--plug-in", "chexbert=x")
    assert (result.code, result.err) == (2, "medbench: --plug-in scores the reports of a task, not --pairs\n")
