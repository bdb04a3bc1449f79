"""Training: the order of items, the loss, accumulation, several processes, checkpoints and resuming."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Toy, make_toy
from hypothesis import given
from hypothesis import strategies as st
from test_run_common import do, examples_of, experts, fitted, loaded, lora, trained_tensors, words

import medbench.training.fit
from medbench.errors import WorkError
from medbench.methods import Training
from medbench.results.record import read_record
from medbench.spec import MethodSpec
from medbench.training.collate import Collator
from medbench.training.order import epoch_indices, stage_order
from medbench.training.trainer import StageTrainer, last_checkpoint, load_trained, save_trained

PARTS = st.lists(st.tuples(st.integers(1, 15), st.sampled_from([0.3, 0.5, 1.0, 1.5, 2.0, 3.0])), min_size=1, max_size=3)
FULL = MethodSpec("full_ft", "full")


@pytest.fixture(scope="module")
def toy16(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_toy(tmp_path_factory.mktemp("toy16"), train=12, test=4)


@given(PARTS, st.integers(0, 9))
def test_an_epoch_sees_each_item_weight_times(parts: list[tuple[int, float]], seed: int) -> None:
    sizes, weights = zip(*parts, strict=True)
    drawn = epoch_indices(sizes, weights, np.random.default_rng(seed))
    counts = np.bincount(drawn, minlength=sum(sizes))
    offset = 0
    for size, weight in parts:
        own = counts[offset : offset + size]
        assert own.sum() == round(size * weight)
        assert own.max() - own.min() <= 1
        if weight == int(weight):
            assert (own == weight).all()
        offset += size


@given(PARTS, st.sampled_from([0.5, 1.0, 2.0, 2.5]), st.integers(1, 6), st.integers(0, 9))
def test_every_step_is_full_and_epochs_follow_without_a_gap(
    parts: list[tuple[int, float]], epochs: float, batch: int, seed: int
) -> None:
    sizes, weights = zip(*parts, strict=True)
    per_epoch = sum(round(s * w) for s, w in parts)
    lengths = np.random.default_rng(seed).integers(5, 50, sum(sizes)).tolist()
    if per_epoch == 0:
        with pytest.raises(ValueError, match="no item"):
            stage_order(sizes, weights, lengths, epochs, batch, seed)
        return
    order = stage_order(sizes, weights, lengths, epochs, batch, seed)
    assert order.shape[1] == batch
    assert (order.shape[0] - 1) * batch < max(epochs * per_epoch, 1e-9) <= order.size
    assert (order == stage_order(sizes, weights, lengths, epochs, batch, seed)).all()
    counts, whole = np.bincount(order.ravel(), minlength=sum(sizes)), order.size // per_epoch
    offset = 0
    for size, weight in parts:
        low, high = np.floor(round(size * weight) / size), np.ceil(round(size * weight) / size)
        own = counts[offset : offset + size]
        assert (own >= whole * low).all()
        assert (own <= (whole + 1) * high).all()
        offset += size


def test_other_seeds_give_other_orders() -> None:
    first, second = (stage_order([40], [1.0], [1] * 40, 1, 8, seed) for seed in (0, 1))
    assert sorted(first.ravel()) == sorted(second.ravel())
    assert (first != second).any()


def test_length_grouping_lowers_padding() -> None:
    lengths = np.random.default_rng(0).integers(10, 100, 400)
    order = stage_order([400], [1.0], lengths.tolist(), 1, 8, 0)
    plain = np.random.default_rng(1).permutation(400).reshape(-1, 8)

    def padding(batches: np.ndarray) -> int:
        return int((lengths[batches].max(1, keepdims=True) - lengths[batches]).sum())

    assert padding(order) < padding(plain) / 5
    means = lengths[order].mean(1)
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.4  # and batches do not come in order of length


class Recorder(StageTrainer):
    """Keeps the loss of every forward."""

    seen: list[float]

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        self.seen.append(loss.item())
        return loss


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    Recorder.seen = []
    monkeypatch.setattr(medbench.training.fit, "StageTrainer", Recorder)
    return Recorder.seen


@pytest.mark.parametrize("method", [lora(init_lora_weights=False), experts(), FULL], ids=lambda m: m.name)
def test_the_loss_is_the_mean_over_the_answers_tokens(
    tiny: Path, toy16: Toy, tmp_path: Path, losses: list[float], method: MethodSpec
) -> None:
    vlm = loaded(tiny, method)
    data = examples_of(vlm, toy16)[:8]
    total, tokens = 0.0, 0
    with torch.no_grad():
        for example in data:  # one at a time: no padding, every logit, prompt and answer put together by hand
            inputs = vlm.prompt_batch([example.prompt], [vlm.load_image(example.item)])
            full = torch.cat([inputs["input_ids"], torch.tensor([example.target])], 1)
            inputs |= {"input_ids": full, "attention_mask": torch.ones_like(full)}
            if "mm_token_type_ids" in inputs:
                inputs["mm_token_type_ids"] = (full == vlm.base.config.image_token_id).to(torch.int)
            logprobs = vlm.model(**inputs).logits[0].log_softmax(-1)
            start = full.shape[1] - len(example.target)
            total -= sum(float(logprobs[start + i - 1, t]) for i, t in enumerate(example.target))
            tokens += len(example.target)
    fitted(vlm, data, tmp_path, epochs=1)
    assert losses == [pytest.approx(total / tokens, rel=1e-5)]


def test_labels_cover_the_answer_and_its_end(tiny: Path, toy16: Toy) -> None:
    vlm = loaded(tiny, None)
    batch = examples_of(vlm, toy16)[:4]
    collated = Collator(vlm)(batch)
    for row, example in zip(collated["labels"], batch, strict=True):
        assert vlm.processor.tokenizer.decode(row[row >= 0]) == example.item.answer.lower() + "<|im_end|>"
    # The length that items are grouped by ranks them as their tokens do.
    tokens = collated["attention_mask"].sum(1).tolist()
    assert len({example.length - count for example, count in zip(batch, tokens, strict=True)}) == 1
    assert len(set(tokens)) > 1


@pytest.mark.parametrize("method", [lora(), experts()], ids=lambda m: m.name)
def test_accumulation_changes_nothing(
    tiny: Path, toy16: Toy, tmp_path: Path, losses: list[float], method: MethodSpec
) -> None:
    found, weights = [], []
    for micro in (8, 4, 2):
        losses.clear()
        vlm = loaded(tiny, method)
        # Plain SGD: AdamW's first steps turn rounding in a tiny gradient into a full step.
        fitted(vlm, examples_of(vlm, toy16), tmp_path / str(micro), micro_batch_size=micro, optimizer="sgd", lr=0.1)
        found.append(np.array(losses).reshape(3, 8 // micro).sum(1))
        weights.append(trained_tensors(vlm))
    start = trained_tensors(loaded(tiny, method))
    for other, tensors in zip(found[1:], weights[1:], strict=True):
        np.testing.assert_allclose(other, found[0], rtol=1e-5)
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, weights[0][name], rtol=1e-4, atol=1e-6)
    assert any((weights[0][n] - start[n]).abs().max() > 1e-3 for n in start)


def test_the_balance_loss_is_averaged_over_accumulation(
    tiny: Path, toy16: Toy, tmp_path: Path, losses: list[float]
) -> None:
    """L_b is a product of two means over a forward's tokens, so it is not additive; but it lies in [0, N].

    Averaged, its share of a step's loss is between 0 and c N however the step is cut; summed it would grow with cuts.
    """
    share = {}
    for micro in (8, 2):
        for balance in (0.0, 1.0):
            losses.clear()
            vlm = loaded(tiny, experts())
            data = examples_of(vlm, toy16)[:8]
            fitted(vlm, data, tmp_path / f"{micro}{balance}", balance=balance, micro_batch_size=micro, epochs=1)
            share[micro, balance] = sum(losses)
    whole, cut = (share[micro, 1.0] - share[micro, 0.0] for micro in (8, 2))
    assert 0.5 < whole <= 4
    assert cut == pytest.approx(whole, rel=0.25)


@pytest.mark.slow
def test_two_processes_train_as_one(tiny: Path, toy16: Toy, tmp_path: Path) -> None:
    settings = {"training.micro_batch_size": 4, "adapter.dropout": 0, "training.lr": 0.001}
    asked = words(toy16, tiny, "spectral_moe", tmp_path / "two", settings, "--batch-size", 1, "--device", "cpu")
    # Without --multi_gpu, accelerate starts several CPU processes through mpirun only.
    launch = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0"
    launch += " --mixed_precision no --dynamo_backend no"
    command = [sys.executable, *launch.split(), "-m", "medbench", *asked]
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["runs"]) == 1
    (folder,) = (tmp_path / "two").iterdir()
    alone = do(toy16, tiny, tmp_path / "one", "spectral_moe", settings=settings, batch_size=1)
    assert alone.name == folder.name
    two, one = read_record(folder), read_record(alone)
    assert two["environment"]["fit"]["processes"] == two["environment"]["predict"]["processes"] == 2
    pairs = [record["training"]["stages"][0]["losses"] for record in (two, one)]
    assert [p["step"] for p in pairs[0]] == [p["step"] for p in pairs[1]] == [1, 2, 3]
    np.testing.assert_allclose([p["loss"] for p in pairs[0]], [p["loss"] for p in pairs[1]], rtol=1e-4)
    assert two["tasks"]["toy"]["n"] == one["tasks"]["toy"]["n"] == 8
    assert one["prediction"] == {"images_encoded": 4, "image_features_cached": True}
    assert two["prediction"] == {"images_encoded": None, "image_features_cached": True}
    assert {p.name for p in folder.iterdir()} == {p.name for p in alone.iterdir()}


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="not a multiple of micro_batch_size 3"):
        Training(batch_size=8, micro_batch_size=3)


@pytest.mark.parametrize("method", [lora(), experts(), FULL], ids=lambda m: m.name)
def test_what_is_trained_is_saved_and_loaded_exactly(tiny: Path, tmp_path: Path, method: MethodSpec) -> None:
    vlm, other = loaded(tiny, method), loaded(tiny, method)
    with torch.no_grad():
        for parameter in vlm.model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    save_trained(vlm.model, tmp_path / "t.safetensors")
    load_trained(other.model, tmp_path / "t.safetensors")
    for (name, one), two in zip(vlm.model.named_parameters(), other.model.parameters(), strict=True):
        assert torch.equal(one, two), name
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]


def test_a_checkpoint_of_another_model_is_refused(tiny: Path, tmp_path: Path) -> None:
    save_trained(loaded(tiny).model, tmp_path / "t.safetensors")
    with pytest.raises(WorkError, match="of another model"):
        load_trained(loaded(tiny, experts()).model, tmp_path / "t.safetensors")


def test_only_whole_checkpoints_count(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    for step in (9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}" / "complete").touch()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]


@pytest.mark.parametrize("method", [lora(dropout=0.2), experts(dropout=0.2), FULL], ids=lambda m: m.name)
def test_a_resumed_stage_equals_an_unbroken_one(tiny: Path, toy16: Toy, tmp_path: Path, method: MethodSpec) -> None:
    whole = loaded(tiny, method)
    data = examples_of(whole, toy16)
    result = fitted(whole, data, tmp_path / "whole", batch_size=4, micro_batch_size=4, checkpoint_steps=2)
    assert (result.steps, result.resumed_from) == (6, 0)

    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    folder = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        fitted(loaded(tiny, method), data, folder, stop, batch_size=4, micro_batch_size=4, checkpoint_steps=2)
    shutil.copytree(folder / "checkpoint-4", folder / "checkpoint-5")
    (folder / "checkpoint-5" / "complete").unlink()
    (folder / "checkpoint-5" / "trained.safetensors").write_bytes(b"half")
    for expected in (4, 6):  # the second time everything is done, as after a kill just before the adapter is published
        resumed = loaded(tiny, method)
        torch.manual_seed(99)
        again = fitted(resumed, data, folder, batch_size=4, micro_batch_size=4, checkpoint_steps=2)
        assert again.resumed_from == expected
        for (name, one), two in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(one, two), name


@pytest.mark.parametrize("method", [lora(), experts()], ids=lambda m: m.name)
def test_gradient_checkpointing_changes_nothing(
    tiny: Path, toy16: Toy, tmp_path: Path, losses: list[float], method: MethodSpec
) -> None:
    weights = []
    for on in (False, True):
        vlm = loaded(tiny, method)
        fitted(vlm, examples_of(vlm, toy16), tmp_path / str(on), balance=0.1, gradient_checkpointing=on)
        weights.append(trained_tensors(vlm))
    np.testing.assert_allclose(losses[3:], losses[:3], rtol=1e-5)
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["spectral_moe", "full_ft"])
def test_a_bfloat16_run_finishes_on_the_cpu(tiny: Path, toy16: Toy, tmp_path: Path, method: str) -> None:
    settings = {"training.lr": 1e-3, "training.epochs": 2, "training.warmup": 0}
    found = {}
    for dtype in ("float32", "bfloat16"):
        record = read_record(do(toy16, tiny, tmp_path, method, dtype=dtype, settings=settings))
        assert record["dtype"] == dtype
        found[dtype] = [entry["loss"] for entry in record["training"]["stages"][0]["losses"]]
    assert found["bfloat16"] != found["float32"]
    np.testing.assert_allclose(found["bfloat16"], found["float32"], rtol=0.05)
