"""The command line: a wrong request is one line and exit code 2, names need no torch, `--json` is one document."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, Toy

from medbench.__main__ import main


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Call = Callable[..., Result]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """`medbench WORDS` in this process, in an empty folder."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*words: object) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as done:
            main([str(word) for word in words])
        out, err = capfd.readouterr()
        code = done.value.code
        assert isinstance(code, int)
        return Result(code, out, err)

    return run


def check_refused(result: Result, message: str) -> None:
    """Exit code 2, one line on stderr that begins with the program's name, nothing else anywhere."""
    assert result.err.count("\n") == 1, result.err
    assert re.match(f"medbench: .*{message}", result.err), result.err
    assert (result.code, result.out) == (2, "")
    assert list(Path.cwd().iterdir()) == []


DEMO = ("run", "--tasks", "phantom_vqa")
BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "method": ((*DEMO, "--method", "lorra"), "unknown method 'lorra'; did you mean lora"),
    "no method": ((*DEMO, "--method", ","), "no method given; use --method"),
    "task": (("run", "--tasks", "slak"), r"unknown task 'slak'; did you mean slake"),
    "wildcard": (("run", "--tasks", "zz*"), r"no task matches 'zz\*'"),
    "no tasks": (("run",), "Missing option '--tasks'"),
    "empty tasks": (("run", "--tasks", ""), "no task given; use --tasks"),
    "budget 0": ((*DEMO, "--budget", "0"), "budget '0' must be greater than 0"),
    "budget 0 of none": ((*DEMO, "--budget", "0", "--method", "none"), "budget '0' must be greater than 0"),
    "budget form": ((*DEMO, "--budget", "much"), "budget 'much' is not understood; use like="),
    "budget small": (
        (*DEMO, "--budget", "100", "--method", "lora"),
        r"below the smallest that method lora can have: 16,384 at rank 1 \(--budget 16384\)",
    ),
    "rank": (
        (*DEMO, "--budget", "rank=12"),
        "spectral_moe cannot have rank 12: .* a multiple of its 8 experts",
    ),
    "like": ((*DEMO, "--budget", "like=loraa"), "unknown method 'loraa'; did you mean lora"),
    "backbone": ((*DEMO, "--backbone", "nano-vll"), r"unknown backbone 'nano-vll'; did you mean nano-vl"),
    "backbone folder": ((*DEMO, "--backbone", "."), "has no config.json"),
    "no data root": (("run", "--tasks", "vqa_rad"), "task vqa_rad needs data: pass --data-root, or get VQA-RAD"),
    "empty data root": (
        ("run", "--tasks", "vqa_rad", "--data-root", "."),
        r"task vqa_rad: no data in vqa_rad \(.* is missing\); get VQA-RAD \(open, licence CC0-1.0\)",
    ),
    "option": ((*DEMO, "--metod", "lora"), r"No such option: --metod.*\(see .*run --help\)"),
    "command": (("rum",), "No such command 'rum'"),
    "seeds": ((*DEMO, "--seeds", "a"), "--seeds 'a': expected whole numbers, for example 0,1,2"),
    "seed below": ((*DEMO, "--seeds", "-1"), "--seeds '-1': expected different whole numbers from 0"),
    "seed above": ((*DEMO, "--seeds", str(2**32)), "--seeds '4294967296': expected different whole numbers from 0 to"),
    "no seeds": ((*DEMO, "--seeds", ","), "--seeds ',': expected different whole numbers"),
    "set form": ((*DEMO, "--set", "training.lr"), "--set 'training.lr': expected key=value"),
    "set name": ((*DEMO, "--set", "training.lrr=1"), r"--set training.lrr: unknown; did you mean lr\?"),
    "set part": ((*DEMO, "--set", "generaton.max_new_tokens=1"), "did you mean generation.max_new_tokens"),
    "set adapter": ((*DEMO, "--set", "adapter.rh=1"), "--set adapter.rh: no setting of spectral_moe; did you mean rho"),
    "set value": ((*DEMO, "--set", "training.lr=fast"), "--set training: lr: Input should be a valid number"),
    "set negative": ((*DEMO, "--set", "training.lr=-1"), "--set training: lr: Input should be greater than 0"),
    "set infinite": ((*DEMO, "--set", "training.lr=inf"), "must be text or a finite number"),
    "set list": ((*DEMO, "--set", "training.lr=[1]"), "must be text or a finite number"),
    "set no date": ((*DEMO, "--set", "training.lr=2024-13-45"), "not a YAML scalar"),
    "set pixels": ((*DEMO, "--set", "processor.max_pixels=-5"), "processor.max_pixels=-5: not a setting with such"),
    "set batches": ((*DEMO, "--set", "training.micro_batch_size=5"), "not a multiple of micro_batch_size 5"),
    "set tuner": ((*DEMO, "--set", "adapter.router=topp"), r"router='topp' is unknown; did you mean topk\?"),
    "adapter": ((*DEMO, "--adapter", "."), r"not a peft adapter \(no adapter_config.json\)"),
    "split": ((*DEMO, "--split", "train"), "--split 'train': known: test, validation"),
    "limit": ((*DEMO, "--limit", "0"), "Invalid value for '--limit'"),
    "dtype": ((*DEMO, "--dtype", "int8"), "--dtype 'int8'; known: auto, float32"),
    "on bad item": ((*DEMO, "--on-bad-item", "ignore"), "--on-bad-item 'ignore': known: fail, skip"),
    "protocol": ((*DEMO, "--protocol", "zero_shot"), "phantom_vqa would be trained on"),
    "list": (("list", "task"), "list 'task': did you mean tasks"),
    "budget method": (("budget", "--method", "lorra"), "unknown method 'lorra'"),
    "score file": (("score", "gone.parquet", "--task", "phantom_vqa"), "gone.parquet: no such file"),
    "table folder": (("table", "gone"), "gone: no such folder"),
    "verify task": (("data", "verify", "slak"), "unknown task 'slak'"),
    "verify data": (("data", "verify", "vqa_rad", "--data-root", "."), "no data in vqa_rad"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_request_is_one_line(call: Call, name: str) -> None:
    words, message = BAD[name]
    check_refused(call(*words), message)
    if words[0] != "run" or "--json" in words or "--tasks" not in words:
        return
    check_refused(call(*words, "--json"), message)


def test_a_broken_card_is_one_line(call: Call, toy: Toy) -> None:
    content: dict[str, Any] = toy.card_content()
    del content["metadata"]["splits"]["test"]["count"]
    toy.write_card(content)
    words = ("run", "--tasks", toy.card, "--data-root", toy.root)
    check_refused(call(*words), rf"{re.escape(str(toy.card))}: metadata\.splits\.test\.count: is missing; add it")


def test_the_same_as_a_process(cli_process: Cli, tmp_path: Path) -> None:
    done = cli_process("run", "--tasks", "vqa_rad", "--data-root", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"medbench: task vqa_rad: no data in .*\n", done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_work_that_fails_is_one_line_and_exit_code_1(call: Call, toy: Toy) -> None:
    (toy.folder / "test.json").write_text("[{")
    words = ("--task", "toy", "--data-root", toy.root)
    (Path.cwd() / "medbench.toml").write_text(f'tasks = ["{toy.card.parent}"]')
    (Path.cwd() / "p.parquet").write_bytes(b"")
    result = call("run", "--tasks", "toy", *words[2:], "--method", "none", "--dry-run")
    assert (result.code, result.out) == (1, "")
    assert re.fullmatch(r"medbench: .*test\.json: not readable as JSON .*\n", result.err)
    assert call("score", "p.parquet", *words).code == 1
    (Path.cwd() / "file").touch()
    result = call(*DEMO, "--method", "none", "--limit", "1", "--out", "file", "--json")
    assert (result.code, result.out) == (1, "")
    assert result.err.splitlines()[-1].startswith("medbench: cannot make the run folder file/")


LIGHT = """
import contextlib, io, sys
from medbench.__main__ import main
for words in {commands!r}:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            main(words)
        except SystemExit as done:
            assert not done.code, (words, done.code)
    assert out.getvalue().strip(), words
    heavy = {{"torch", "transformers", "peft", "datasets", "sklearn"}} & set(sys.modules)
    assert not heavy, (words, heavy)
"""
LISTED = ("tasks", "methods", "backbones", "profiles", "grids")
COMMANDS = [
    [],
    ["--help"],
    ["run", "--help"],
    ["--version"],
    *(["list", what, *more] for what in LISTED for more in ([], ["--json"])),
    ["budget"],
    ["budget", "--backbone", "qwen2.5-vl-7b", "--budget", "1%", "--json"],
    ["data", "status"],
    ["data", "status", "--json"],
]


def test_names_need_no_torch(tmp_path: Path) -> None:
    script = LIGHT.format(commands=COMMANDS)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("what", LISTED)
def test_lists_are_one_document_of_named_rows(call: Call, what: str) -> None:
    result = call("list", what, "--json")
    assert (result.code, result.err) == (0, "")
    rows = json.loads(result.out)
    assert rows
    assert all(row["name"] and row["kind"] for row in rows)
    assert len({row["name"] for row in rows}) == len(rows)
    shown = call("list", what).out
    assert all(row["name"] in shown for row in rows)


def test_a_dry_run_says_what_would_be_done(call: Call, toy: Toy) -> None:
    words = ("run", "--tasks", toy.card, "--data-root", toy.root, "--method", "lora,none", "--seeds", "0,1")
    words += ("--budget", "rank=4", "--set", "training.epochs=2", "--set", "training.batch_size=10")
    words += ("--set", "training.micro_batch_size=5", "--dry-run")
    result = call(*words, "--limit", 5, "--json")
    assert (result.code, result.err) == (0, "")
    rows = json.loads(result.out)["plan"]
    assert [(row["method"], row["seed"]) for row in rows] == [("lora", 0), ("lora", 1), ("none", 0)]
    lora, none = rows[0], rows[2]
    assert (lora["rank"], lora["trainable_parameters"]) == (4, 4 * 16384)
    assert lora["stages"][0]["train_items"] == {"toy": 48}
    assert lora["stages"][0]["steps"] == 10  # ceil(2 * 48 / 10)
    assert (lora["test_items"], none["test_items"]) == ({"toy": 5}, {"toy": 5})
    assert (none["rank"], none["trainable_parameters"], none["stages"]) == (None, 0, [])
    assert lora["memory_estimate_bytes"] > none["memory_estimate_bytes"] > 4 * 5_000_000
    assert len({row["run"] for row in rows}) == 3
    text = call(*words).out
    assert all(row["run"][:12] in text for row in json.loads(call(*words, "--json").out)["plan"])
    assert list(Path.cwd().iterdir()) == []


def test_verify_says_what_is_wrong_and_exits_1(call: Call, toy: Toy) -> None:
    words = ("data", "verify", toy.card, "--data-root", toy.root)
    good = call(*words, "--json")
    assert (good.code, good.err) == (0, "")
    rows = {row["split"]: row for row in json.loads(good.out)}
    assert rows["test"] | {"digest": "", "images_digest": ""} == {
        **{"task": "toy", "split": "test", "expected": 24, "items": 24, "closed": 12, "images": 12},
        **{"digest": "", "images_digest": "", "problems": []},
    }
    image = toy.folder / "images" / "test3.png"
    image.write_bytes(image.read_bytes()[:-30])
    bad = call(*words, "--json")
    assert (bad.code, bad.err) == (1, "medbench: problems in toy test; the table says which\n")
    found = {row["split"]: row for row in json.loads(bad.out)}
    assert found["train"] == rows["train"]
    assert found["test"]["items"] == 22
    assert [str(image) in problem for problem in found["test"]["problems"]] == [True, True]
    assert str(image) in call(*words).out


def test_status_says_how_to_get_the_data(call: Call, toy: Toy) -> None:
    (Path.cwd() / "medbench.toml").write_text(f'tasks = ["{toy.card.parent}"]\ndata_root = "{toy.root}"\n')
    rows = {row["name"]: row for row in json.loads(call("data", "status", "--json").out)}
    assert (rows["toy"]["status"], rows["toy"]["folder"]) == ("found", str(toy.folder))
    assert rows["phantom_vqa"]["status"] == "found"
    assert rows["vqa_rad"]["status"] == "missing"
    assert "osf.io/89kps" in rows["vqa_rad"]["note"]
    (one,) = json.loads(call("data", "status", "toy", "--json").out)
    assert one == rows["toy"]
