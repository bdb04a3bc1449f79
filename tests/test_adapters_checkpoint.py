"""Stored adapters beyond the matrix of test_exactness_reload.py: going on with training, and files that are wrong."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from test_adapters_common import LLAMA_TARGETS, adapted, adapter_tensors, llama, mlp, perturb

from medbench.adapters import ExpertLoraConfig, load_adapter_strict, register
from medbench.errors import RequestError, WorkError

IDS = torch.arange(1, 13).reshape(2, 6)
WEIGHTS = "adapter_model.safetensors"


def saved(folder: Path, **settings: object) -> PeftModel:
    model = adapted(llama(), target_modules=LLAMA_TARGETS, **settings).eval()
    perturb(model)
    model.save_pretrained(str(folder))
    return model


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


def test_an_adapter_of_another_architecture_is_refused_and_leaves_the_base(tmp_path):
    saved(tmp_path)
    base, x = mlp(), torch.randn(3, 24)
    expected = base(x)
    with pytest.raises(RequestError, match="fits no layer of this model; it was made for"):
        load_adapter_strict(base, tmp_path)
    assert torch.equal(base(x), expected)
    assert not base._forward_pre_hooks
