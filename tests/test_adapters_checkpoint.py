"""Saving, loading, disabling, and several adapters on one model."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from test_adapters_common import LLAMA_TARGETS, adapted, adapter_tensors, expert_layers, llama, mlp, perturb

import medbench.adapters.layer as layer_module
from medbench.adapters import ExpertLoraConfig, load_adapter_strict, register
from medbench.errors import RequestError, WorkError

IDS = torch.arange(1, 13).reshape(2, 6)
WEIGHTS = "adapter_model.safetensors"


def saved(folder: Path, **settings: object) -> PeftModel:
    dtype = settings.pop("dtype", torch.float32)
    model = adapted(llama(dtype=dtype), target_modules=LLAMA_TARGETS, **settings).eval()
    perturb(model)
    model.save_pretrained(str(folder))
    return model


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


LOADERS = {
    "peft": PeftModel.from_pretrained,
    "meta": lambda base, folder: PeftModel.from_pretrained(base, folder, low_cpu_mem_usage=True),
    "strict": load_adapter_strict,
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", [{}, {"router": "none"}, {"init": "zero"}, {"init": "random", "seed": 3}])
def test_a_saved_adapter_comes_back_bit_for_bit_without_a_new_svd(tmp_path, monkeypatch, loader, dtype, settings):
    model = saved(tmp_path, dtype=dtype, **settings)
    expected = model(input_ids=IDS).logits
    base = llama(dtype=dtype)
    monkeypatch.setattr(layer_module, "segment_factors", lambda *_: pytest.fail("decomposed again on load"))
    torch.manual_seed(99)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing.*")
        again = LOADERS[loader](base, str(tmp_path))
    assert same(adapter_tensors(again), adapter_tensors(model))
    assert torch.equal(again(input_ids=IDS).logits, expected)
    assert not any(p.requires_grad for p in again.parameters())


def test_a_new_process_loads_the_same_adapter(tmp_path):
    model = saved(tmp_path / "adapter")
    torch.save(model(input_ids=IDS).logits, tmp_path / "expected.pt")
    program = """
import sys, torch, medbench.adapters
from peft import PeftModel
from test_adapters_common import llama
base = llama()
torch.manual_seed(1234)
model = PeftModel.from_pretrained(base, sys.argv[1] + "/adapter")
ids = torch.arange(1, 13).reshape(2, 6)
assert torch.equal(model(input_ids=ids).logits, torch.load(sys.argv[1] + "/expected.pt"))
assert "medbench" in type(model.base_model).__module__
"""
    here = Path(__file__).parent
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(here.parent), str(here)]),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # another thread count is another rounding
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_training_goes_on_after_a_trainable_load(tmp_path):
    model = saved(tmp_path)
    again = load_adapter_strict(llama(), tmp_path, is_trainable=True)
    assert again.get_nb_trainable_parameters() == model.get_nb_trainable_parameters()
    assert not any(p.requires_grad for n, p in again.named_parameters() if "A0" in n or "B0" in n)
    again(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for p in again.parameters() if p.requires_grad)


def test_a_configuration_read_for_loading_refuses_to_run_without_its_weights(tmp_path):
    saved(tmp_path)
    model = get_peft_model(llama(), ExpertLoraConfig.from_pretrained(str(tmp_path)))
    with pytest.raises(WorkError, match=r"no checkpoint filled .* dataclasses.replace"):
        model(input_ids=IDS)


def test_a_hole_in_the_checkpoint_is_an_error_even_through_peft(tmp_path):
    saved(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    del tensors["base_model.model.model.layers.1.self_attn.q_proj.expert_router"]
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.warns(UserWarning, match="missing adapter keys"):
        model = PeftModel.from_pretrained(llama(), str(tmp_path))
    with pytest.raises(WorkError, match=r"filled 1 of its tensors.*layers\.1\.self_attn\.q_proj\.expert_router"):
        model(input_ids=IDS)


def drop(tensors: dict[str, torch.Tensor], part: str) -> None:
    del tensors[next(key for key in tensors if part in key)]


def add(tensors: dict[str, torch.Tensor], part: str) -> None:
    tensors[next(key for key in tensors if part in key).replace("layers.0", "layers.7")] = torch.zeros(2, 2)


def reshape(tensors: dict[str, torch.Tensor], part: str) -> None:
    tensors[next(key for key in tensors if part in key)] = torch.zeros(3, 5)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop, r"lacks 1 tensors of the adapter: .*{part}"),
        (add, r"no place for: .*layers\.7.*{part}"),
        (reshape, r"does not fit the model: size mismatch for .*{part}"),
    ],
)
@pytest.mark.parametrize("part", ["expert_A0", "expert_B", "expert_router", "lora_A"])
def test_strict_loading_names_what_does_not_fit_and_leaves_the_base(tmp_path, damage, message, part):
    base = llama()
    expected = base(input_ids=IDS).logits
    if part.startswith("lora"):
        get_peft_model(llama(), LoraConfig(target_modules=LLAMA_TARGETS)).save_pretrained(str(tmp_path))
    else:
        saved(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    damage(tensors, part)
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(WorkError, match=message.format(part=part)):
        load_adapter_strict(base, tmp_path)
    assert torch.equal(base(input_ids=IDS).logits, expected)
    assert not any("expert_" in key or "lora_" in key for key in base.state_dict())


def test_strict_loading_takes_lora_of_peft(tmp_path):
    model = get_peft_model(llama(), LoraConfig(target_modules=LLAMA_TARGETS)).eval()
    perturb(model)
    model.save_pretrained(str(tmp_path))
    again = load_adapter_strict(llama(), tmp_path)
    assert torch.equal(again(input_ids=IDS).logits, model(input_ids=IDS).logits)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_named(tmp_path, keep):
    saved(tmp_path)
    content = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(content[:keep])
    with pytest.raises(WorkError, match=WEIGHTS):
        load_adapter_strict(llama(), tmp_path)


def test_pickles_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(RequestError, match=r"no adapter_config.json"):
        load_adapter_strict(llama(), tmp_path)
    model = saved(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    torch.save(adapter_tensors(model), tmp_path / "adapter_model.bin")
    with pytest.raises(RequestError, match=r"only adapter_model.bin.*safetensors"):
        load_adapter_strict(llama(), tmp_path)


def test_a_broken_configuration_is_named(tmp_path):
    saved(tmp_path)
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**stored, "router": "topp"}))
    with pytest.raises(WorkError, match=r"adapter_config.json cannot be read: router='topp'.*topk"):
        load_adapter_strict(llama(), tmp_path)


def test_disabling_gives_the_base_bit_for_bit():
    base = llama()
    expected = base(input_ids=IDS).logits
    weights = {name: value.clone() for name, value in base.state_dict().items()}
    model = adapted(base, target_modules=LLAMA_TARGETS).eval()
    perturb(model)
    changed = model(input_ids=IDS).logits
    assert not torch.equal(changed, expected)
    with model.disable_adapter():
        assert torch.equal(model(input_ids=IDS).logits, expected)
    assert torch.equal(model(input_ids=IDS).logits, changed)
    assert same(dict(model.unload().state_dict()), weights)


def test_two_adapters_do_not_disturb_each_other(tmp_path):
    def one_alone(name: str, **settings: object) -> torch.Tensor:
        torch.manual_seed(7)
        model = adapted(llama(), **settings).eval()
        perturb(model, seed=2)
        model.save_pretrained(str(tmp_path / name))
        return model(input_ids=IDS).logits

    first = {"target_modules": LLAMA_TARGETS}
    second = {
        "target_modules": ["q_proj", "k_proj"],
        "router": "none",
        "init": "minor",
        "r": 4,
        "num_experts": 2,
    }
    alone = {"first": one_alone("first", **first), "second": one_alone("second", **second)}

    model = PeftModel.from_pretrained(llama(), str(tmp_path / "first"), adapter_name="first")
    before = adapter_tensors(model, "first")
    before = {key: value.clone() for key, value in before.items()}
    model.load_adapter(str(tmp_path / "second"), "second")
    assert same(adapter_tensors(model, "first"), before)
    for name in ("first", "second", "first"):
        model.set_adapter(name)
        assert torch.equal(model(input_ids=IDS).logits, alone[name])
        active = {key.rsplit(".", 1)[1] for key, p in model.named_parameters() if p.requires_grad}
        assert active == {name}
    model.delete_adapter("second")
    assert torch.equal(model(input_ids=IDS).logits, alone["first"])
    assert all("second" not in layer.expert_spec for layer in expert_layers(model))


def test_further_modules_are_saved_with_the_adapter(tmp_path):
    model = adapted(mlp(), target_modules=["wide"], modules_to_save=["narrow"]).eval()
    perturb(model)
    model.save_pretrained(str(tmp_path))
    x = torch.randn(3, 24)
    assert torch.equal(load_adapter_strict(mlp(), tmp_path)(x), model(x))
    tensors = load_file(tmp_path / WEIGHTS)
    drop(tensors, "narrow")
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(WorkError, match=r"lacks .*narrow"):
        load_adapter_strict(mlp(), tmp_path)


def test_registering_twice_is_harmless():
    register()
    register()
    assert adapted(mlp()).peft_type == "EXPERT_LORA"
