"""Methods that cannot be built, and adapters that cannot be tested: one line that says why, and nothing is written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import test_cli
import torch
from safetensors.torch import save_file
from test_cli import Call, check_refused

call = test_cli.call  # the fixture

DEMO = ("run", "--tasks", "phantom_vqa", "--method")
SIXTEEN = ("--budget", "rank=16")
REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "N does not divide r": (
        ("spectral_moe", *SIXTEEN, "--set", "adapter.num_experts=3"),
        "method spectral_moe cannot have rank 16: it must be a multiple of its 3 experts, from 3 to 126",
    ),
    "N does not divide the paper's r": (
        ("goat", "--budget", "paper", "--set", "adapter.num_experts=5"),
        "method goat cannot have rank 32: it must be a multiple of its 5 experts",
    ),
    "r below N": (
        ("moelora", "--budget", "rank=4"),
        "method moelora cannot have rank 4: it must be a multiple of its 8 experts, from 8 to 128",
    ),
    "budget below N": (
        ("adamole", "--set", "adapter.num_experts=64"),
        "below the smallest that method adamole can have: .* at rank 64",
    ),
    "more experts than a layer has ranks": (
        ("spectral_moe", "--budget", "rank=256", "--set", "adapter.num_experts=256"),
        "method spectral_moe: 256 experts need a layer side of 256, the smallest has less",
    ),
    "k above N": (("spectral_moe", "--set", "adapter.top_k=9"), "spectral_moe: top_k=9 is more than num_experts=8"),
    "k above N, whole copies": (
        ("full_ft_moe", "--set", "adapter.top_k=9"),
        "adapter.top_k=9 is more than adapter.num_experts=8",
    ),
    "no k": (("hydralora", "--set", "adapter.top_k=0"), "hydralora: top_k must be a whole number of at least 1, got 0"),
    "no N": (
        ("moelora", "--set", "adapter.num_experts=0"),
        "adapter.num_experts=0: must be a whole number of at least",
    ),
    "half an expert": (
        ("moelora", "--set", "adapter.num_experts=2.5"),
        "--set adapter.num_experts should be a whole number, found 2.5",
    ),
    "negative rho": (
        ("spectral_moe", "--set", "adapter.rho=-1"),
        "spectral_moe: rho must be positive and finite, got -1.0",
    ),
    "no eta": (("goat", "--set", "adapter.eta=0"), "goat: eta must be positive and finite, got 0.0"),
    "r above min(m, n)": (("pissa", "--budget", "rank=129"), "pissa cannot have rank 129: it must be from 1 to 128"),
    "r above min(m, n), zero init": (("lora", "--budget", "rank=129"), "lora cannot have rank 129: .* from 1 to 128"),
    "segment after the end": (
        ("pissa", "--set", "adapter.segment_start=1.5"),
        r"pissa: segment_start must lie in \[0, 1\], got 1.5",
    ),
    "segment before the start": (
        ("milora", "--set", "adapter.segment_start=-0.1"),
        r"milora: segment_start must lie in \[0, 1\], got -0.1",
    ),
    "one segment for many": (
        ("spectral_moe", "--set", "adapter.segment_start=0.5"),
        "spectral_moe: segment_start places one expert: num_experts=1",
    ),
    "no router and one A": (("hydralora", "--set", "adapter.router=none"), "shared_a without a router is one expert"),
    "diagonal of a spectral start": (("kasa", "--set", "adapter.init=minor"), "diagonal needs init 'zero'"),
    "another tuner's setting": (("full_ft_moe", "--set", "adapter.rho=1"), "adapter.rho: no setting of full_ft_moe"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_method_that_cannot_be_built_is_refused(call: Call, name: str) -> None:
    words, message = REFUSED[name]
    check_refused(call(*DEMO, *words), message)


def adapter_of(folder: Path, backbone: str) -> Path:
    """What `medbench run` stores, as far as a plan reads it."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    about = {"backbone": backbone, "method": "lora", "trained_on": ["slake"]}
    (folder / "medbench.json").write_text(json.dumps(about))
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(4, 8)}, folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_of_another_backbone_is_refused_with_its_name(call: Call, tmp_path: Path) -> None:
    folder = adapter_of(tmp_path / "adapter", "qwen2.5-vl-7b")
    result = call(*DEMO[:-1], "--adapter", folder)
    check_refused(result, f"--adapter {re.escape(str(folder))}: was trained on backbone qwen2.5-vl-7b, not on nano-vl")


@pytest.mark.parametrize("kept", [0, 7, 60, -1])
def test_a_truncated_adapter_is_damaged_work(call: Call, tmp_path: Path, kept: int) -> None:
    folder = adapter_of(tmp_path / "adapter", "nano-vl")
    file = folder / "adapter_model.safetensors"
    assert call(*DEMO[:-1], "--adapter", folder, "--dry-run").code == 0
    file.write_bytes(file.read_bytes()[:kept])
    result = call(*DEMO[:-1], "--adapter", folder)
    assert (result.code, result.out) == (1, "")
    assert re.fullmatch(rf"medbench: {re.escape(str(file))}: not readable as safetensors .*\n", result.err)
    assert list(Path.cwd().iterdir()) == []
