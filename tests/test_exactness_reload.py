"""Stored adapters of every method: the same again in a new process, and nothing where a file is not whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from test_exactness_common import (
    ADAPTERS,
    KINDS,
    METHODS,
    RANK,
    TUNED,
    Loader,
    batch_of,
    build,
    distance,
    load,
    output_of,
    perturb,
    same,
    save,
    tensors_of,
)
from torch import nn

import medbench.adapters.layer as layer_module
from medbench.adapters import load_adapter_strict
from medbench.adapters.upcycle import load_upcycled
from medbench.errors import WorkError
from medbench.tuners import get_tuner

HERE = Path(__file__).parent
LOADERS: dict[str, Loader] = {
    "peft": PeftModel.from_pretrained,
    "meta": lambda base, folder: PeftModel.from_pretrained(base, folder, low_cpu_mem_usage=True),
    "strict": load_adapter_strict,
}
#: What is stored in a library's own way: of an open_clip tower the whole weights are not.
STORED = [(method, kind) for kind in KINDS for method in TUNED if (method, kind) != ("full_ft", "clip")]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Stored = dict[tuple[str, str, str], Path]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """Every method on every model and dtype, moved from its start, saved: tensors and output lie beside it."""
    folders = {}
    for method, kind in STORED:
        for name, dtype in DTYPES.items():
            case = perturb(build(method, kind, dtype=dtype))
            folder = folders[method, kind, name] = tmp_path_factory.mktemp(f"{method}-{kind}-{name}")
            save(case, folder / "adapter")
            torch.save(tensors_of(case.model), folder / "tensors.pt")
            torch.save(case.output(), folder / "output.pt")
    return folders


def differences(folder: Path, method: str, kind: str, dtype: str, loader: str) -> tuple[bool, float]:
    """Whether what is loaded has the stored bits, and how far its output is from that of then."""
    model = load(method, kind, folder / "adapter", DTYPES[dtype], LOADERS[loader])
    output = output_of(model, batch_of(kind, DTYPES[dtype]))
    expected = torch.load(folder / "output.pt")
    far = 0.0 if torch.equal(output, expected) else distance(output, expected)
    return same(tensors_of(model), torch.load(folder / "tensors.pt")), far


def main() -> None:
    """What the new process does: loads what is stored, each in its own way; the differences go to stdout as JSON."""
    found = []
    for threads, loader, *key, folder in json.load(sys.stdin):
        torch.set_num_threads(threads)
        found.append((threads, loader, *key, *differences(Path(folder), *key, loader)))
    print(json.dumps(found))


@pytest.fixture(scope="module")
def reloaded(stored: Stored) -> list[tuple[int, str, bool, float]]:
    """(threads, what and how, equal bits, distance of the output) of everything stored, in a new process."""
    own, wanted = torch.get_num_threads(), []
    for (method, kind, dtype), folder in stored.items():
        # peft rounds its own adapters to the base's dtype under low_cpu_mem_usage; `load_adapter_strict` does not.
        loader = "strict" if dtype == "float32" or METHODS[method].tuner == "lora" else "meta"
        wanted.append((own, loader, method, kind, dtype, str(folder)))
        if dtype == "float32":
            wanted.append((own + 1, "meta", method, kind, dtype, str(folder)))
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(own), "HF_HUB_OFFLINE": "1"}
    environment["OMP_WAIT_POLICY"] = "passive"  # threads that wait for one another do not keep a core from others
    command = [sys.executable, "-W", "ignore", "-c", "import test_exactness_reload; test_exactness_reload.main()"]
    given = json.dumps(sorted(wanted))
    done = subprocess.run(command, input=given, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert len(rows) == len(wanted)
    return [(threads, " ".join(names), bits, far) for threads, *names, bits, far in rows]


def test_a_new_process_loads_the_same_bits(reloaded: list[tuple[int, str, bool, float]]) -> None:
    assert [row for row in reloaded if not row[2]] == []


def test_a_new_process_computes_the_same_bits(reloaded: list[tuple[int, str, bool, float]]) -> None:
    assert [row for row in reloaded if row[0] == torch.get_num_threads() and row[3] > 0] == []


def test_with_another_number_of_threads_the_output_is_near(reloaded: list[tuple[int, str, bool, float]]) -> None:
    assert [row for row in reloaded if row[3] > 1e-5] == []


@pytest.mark.parametrize("loader", LOADERS)
def test_loading_decomposes_nothing(stored: Stored, monkeypatch: pytest.MonkeyPatch, loader: str) -> None:
    def fail(*_: object) -> None:
        pytest.fail("decomposed again on load")

    monkeypatch.setattr(layer_module, "segment_factors", fail)
    for method in ("spectral_moe", "kasa", "pissa", "milora"):
        assert differences(stored[method, "llama", "bfloat16"], method, "llama", "bfloat16", loader) == (True, 0)


def drop(tensors: dict[str, torch.Tensor], name: str) -> str:
    del tensors[name]
    return "lacks .*{}"


def add(tensors: dict[str, torch.Tensor], name: str) -> str:
    tensors[name.replace("layers.0", "layers.7")] = torch.zeros(2, 2)
    return r"no place for: .*layers\.7.*{}"


def reshape(tensors: dict[str, torch.Tensor], name: str) -> str:
    tensors[name] = torch.zeros(3, 5)
    return "does not fit the model: .*{}"


@pytest.mark.parametrize("damage", [drop, add, reshape])
@pytest.mark.parametrize("method", [*ADAPTERS, "full_ft_moe"])
def test_a_tensor_too_few_too_many_or_misshapen_is_named_and_the_base_stays(
    stored: Stored, tmp_path: Path, method: str, damage: Callable[[dict[str, torch.Tensor], str], str]
) -> None:
    folder = stored[method, "llama", "float32"] / "adapter"
    (weights,) = folder.glob("*.safetensors")
    for file in folder.iterdir():
        if file != weights:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    base = KINDS["llama"].base()
    plain = tensors_of(base)
    names = [name for name in load_file(weights) if "layers.0.self_attn.q_proj" in name]
    assert len(names) >= 2
    for name in names:
        tensors = load_file(weights)
        message = damage(tensors, name).format(name.rpartition("layers.")[2].removesuffix(".weight")[2:])
        save_file(tensors, tmp_path / weights.name)
        loader = load_upcycled if method == "full_ft_moe" else load_adapter_strict
        with pytest.raises(WorkError, match=message):
            loader(base, tmp_path)
        assert same(tensors_of(base), plain)


@pytest.mark.parametrize("method", ADAPTERS)
def test_a_model_without_weights_takes_an_adapter_that_waits_for_them(method: str) -> None:
    def model() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(32, 48), nn.Tanh(), nn.Linear(48, 40))

    recipe = METHODS[method].at("nano").adapter
    settings = {name: value for name, value in recipe.items() if name != "targets"}
    config = get_tuner(METHODS[method].tuner).peft_config({**settings, "r": RANK}, "[02]", 0)
    real, x = get_peft_model(model(), config), torch.randn(5, 32)
    with torch.device("meta"):
        empty = get_peft_model(model(), config)
    assert all(p.is_meta for p in empty.parameters())
    empty.load_state_dict(real.state_dict(), assign=True)
    assert torch.equal(empty.eval()(x), real.eval()(x))
    assert empty.get_nb_trainable_parameters() == real.get_nb_trainable_parameters()
