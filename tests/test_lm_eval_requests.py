"""lm-eval's requests one by one: likelihoods against plain forwards, what is refused, caches, the command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Toy, make_toy
from lm_eval.api.instance import Instance
from PIL import Image
from test_run_common import do

from medbench.__main__ import main
from medbench.catalog import Catalog
from medbench.data.item import BadItemError
from medbench.data.load import load_items
from medbench.errors import MedbenchError, RequestError
from medbench.harness import MedbenchLM, task_config
from medbench.harness.images import CardImage, image_ref
from medbench.harness.serving import ModelArgs
from medbench.inference.predict import Predictor

ASKED = "<image>What is the colour?"
GREEDY = {"until": [], "max_gen_toks": 6, "do_sample": False, "temperature": 0.0}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_toy(tmp_path_factory.mktemp("requests"), train=2, test=3)


@pytest.fixture(scope="module")
def lm() -> MedbenchLM:
    """The nano backbone, which answers in words."""
    return MedbenchLM(device="cpu", batch_size=4)


def images(small: Toy) -> list[Any]:
    items = load_items(Catalog().task(str(small.card)), "test", small.root).items
    return [CardImage(item) for item in items[::2]]


def request(*arguments: Any, kind: str = "generate_until", doc: Any = None) -> Instance:
    return Instance(kind, doc or {"id": "7"}, arguments, 0, metadata=("toy", 0, 1))  # type: ignore[arg-type]


def plain_logprobs(lm: MedbenchLM, prompt: str, image: Any, completion: list[int]) -> torch.Tensor:
    """Log-probabilities at each place of a completion: one question, no padding, no cache, nothing remembered."""
    inner = lm.vlm.processor
    batch = dict(inner(text=[lm.vlm.chat(prompt)], images=[image.convert("RGB")], return_tensors="pt"))
    full = torch.cat([batch["input_ids"], torch.tensor([completion])], 1)
    batch |= {"input_ids": full, "attention_mask": torch.ones_like(full)}
    if "mm_token_type_ids" in batch:
        batch["mm_token_type_ids"] = (full == lm.vlm.base.config.image_token_id).to(torch.int)
    with torch.no_grad():
        return lm.vlm.model(**batch, use_cache=False).logits[0, -len(completion) - 1 : -1].log_softmax(-1)


def test_likelihoods_equal_plain_forwards(lm: MedbenchLM, small: Toy) -> None:
    shown = images(small)
    (greedy,) = lm.generate_until([request(ASKED, GREEDY | {"max_gen_toks": 3}, {"visual": shown[:1]})])
    begun = lm.vlm.processor.tokenizer.decode(lm.vlm.completion_ids(greedy)[:1]) + " or not, who knows"
    said = ["yes", "green", "the image is red, not blue", " no", greedy, begun, "yes"]
    requests = [
        request(ASKED, text, {"visual": [image]}, kind="loglikelihood")
        for image in shown
        for text in dict.fromkeys(said)
    ]
    found = lm.loglikelihood([*requests, requests[0]])
    assert found[-1] == found[0]
    flags = []
    for (value, is_greedy), asked in zip(found, requests, strict=False):
        ids = lm.vlm.completion_ids(asked.args[1])
        logprobs = plain_logprobs(lm, "What is the colour?", asked.args[2]["visual"][0], ids)
        assert value == pytest.approx(sum(float(logprobs[i, token]) for i, token in enumerate(ids)), abs=1e-4)
        assert is_greedy == (logprobs.argmax(-1).tolist() == ids)
        flags.append(is_greedy)
    assert len({len(lm.vlm.completion_ids(text)) for text in said}) > 2
    assert set(flags) == {True, False}


def test_an_image_of_another_task_is_shown_as_it_is(lm: MedbenchLM, small: Toy) -> None:
    ours = images(small)
    theirs = [Image.open(image.item.image.path) for image in ours]
    answers = [lm.generate_until([request(ASKED, GREEDY, {"visual": [i]}) for i in s]) for s in (ours, theirs)]
    assert answers[0] == answers[1]
    keys = [image_ref(image).key for image in (*theirs, theirs[0].copy())]
    assert len(set(keys)) == len(theirs) and keys[0] == keys[-1]


def test_stop_strings_and_lengths_are_each_requests_own(lm: MedbenchLM, small: Toy) -> None:
    (image, *_) = images(small)
    whole, short, cut = lm.generate_until(
        [request(ASKED, GREEDY | more, {"visual": [image]}) for more in ({}, {"max_gen_toks": 2}, {"until": None})]
    )
    assert whole == cut and whole.startswith(short) and len(short) < len(whole)
    stop = whole[2]
    assert lm.generate_until([request(ASKED, GREEDY | {"until": stop}, {"visual": [image]})]) == [whole.split(stop)[0]]


REFUSED: dict[str, tuple[Callable[[Any], tuple[Any, ...]], str]] = {
    "few-shot": (lambda i: (f"{ASKED} red\n\n{ASKED}", GREEDY, {"visual": [i]}), "must begin with <image> and hold it"),
    "system": (lambda i: (f"Be brief.\n\n{ASKED}", GREEDY, {"visual": [i]}), "must begin with <image>"),
    "text": (lambda i: ("What is it?", GREEDY), "questions about one image; here is one with no images"),
    "two images": (lambda i: (ASKED, GREEDY, {"visual": [i, i]}), "about one image; here is one with 2 images"),
    "sound": (lambda i: (ASKED, GREEDY, {"visual": [i], "audio": [0]}), "with 1 images and audio"),
    "no picture": (lambda i: (ASKED, GREEDY, {"visual": ["x.png"]}), "expected a PIL image with a request, found str"),
    "sampling": (
        lambda i: (ASKED, GREEDY | {"do_sample": True}, {"visual": [i]}),
        "do_sample=True: answers are decoded",
    ),
    "warm": (lambda i: (ASKED, GREEDY | {"temperature": 0.7}, {"visual": [i]}), "temperature=0.7: answers are decoded"),
    "unknown": (lambda i: (ASKED, GREEDY | {"top_p": 0.9}, {"visual": [i]}), "generation setting top_p=0.9"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_asked_is_refused_before_anything_is_answered(
    lm: MedbenchLM, small: Toy, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(Predictor, "predict", lambda *a, **k: pytest.fail("answered"))
    (image, *_), (make, message) = images(small), REFUSED[name]
    with pytest.raises(RequestError, match=re.escape(message)):
        lm.generate_until([request(ASKED, GREEDY, {"visual": [image]}), request(*make(image))])


def test_other_kinds_of_request_are_refused(lm: MedbenchLM, small: Toy) -> None:
    with pytest.raises(RequestError, match="text alone has no perplexity here"):
        lm.loglikelihood_rolling([request("text", kind="loglikelihood_rolling")])
    with pytest.raises(RequestError, match="an empty continuation"):
        lm.loglikelihood([request(ASKED, "", {"visual": images(small)[:1]}, kind="loglikelihood")])
    user = {"role": "user", "content": ASKED}
    assert lm.apply_chat_template([user]) == ASKED
    for turns in ([{"role": "system", "content": "x"}, user], [user, {"role": "assistant", "content": "It"}]):
        with pytest.raises(RequestError, match="one question at a time"):
            lm.apply_chat_template(turns)


def test_images_are_read_when_looked_at(small: Toy, tmp_path: Path) -> None:
    import pickle

    toy = make_toy(tmp_path, train=1, test=2)
    docs = task_config(str(toy.card), toy.root)["custom_dataset"]()["test"]
    (toy.folder / "images" / "test1.png").unlink()
    first, *_, last = (doc["image"] for doc in docs)
    assert repr(last) == "<image test1.png>"  # no address: lm-eval hashes it
    assert pickle.loads(pickle.dumps(last)).item == last.item
    assert (first.mode, first.size) == ("RGB", (56, 56))
    assert first.tobytes() == Image.open(toy.folder / "images" / "test0.png").convert("RGB").tobytes()
    with pytest.raises(BadItemError, match=r"test1\.png: the file is missing"):
        last.convert("L")


def test_a_cache_serves_the_model_that_filled_it_and_no_other(
    lm: MedbenchLM, tiny: Path, small: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.api.model import CachingLM

    path = str(tmp_path / "answers.db")
    requests = [request(ASKED, GREEDY, {"visual": [image]}) for image in images(small)]
    answers = CachingLM(lm, path).generate_until(requests)
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict", lambda *a, **k: pytest.fail("answered again"))
        assert CachingLM(lm, path).generate_until(requests) == answers
    other = MedbenchLM(backbone=str(tiny), device="cpu")
    with pytest.raises(RequestError, match=r"use_cache: .*answers\.db holds answers of another model"):
        CachingLM(other, path)
    unnamed = type("Db", (dict,), {"filename": "x.db"})(x="yes")
    with pytest.raises(RequestError, match=r"holds answers of another model \(not named\)"):
        lm.set_cache_hook(SimpleNamespace(dbdict=unnamed))
    lm.set_cache_hook(SimpleNamespace(dbdict=None))


def call(capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capfd.readouterr()
    with pytest.raises(SystemExit) as done:
        main([str(word) for word in ("lm-eval", *words)])
    out, err = capfd.readouterr()
    return int(done.value.code or 0), out, err


def test_the_command_writes_one_document_and_lm_evals_files(
    small: Toy, tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda storage: None)
    monkeypatch.chdir(tmp_path)
    run = do(small, tiny, tmp_path / "results" / "runs")
    words = ["--tasks", small.card, "--model_args", f"backbone={tiny},adapter={run.name[:8]},device=cpu", "--limit", 4]
    words += ["--data-root", small.root, "--use_cache", tmp_path / "cache" / "answers"]
    code, out, err = call(capfd, *words, "--output_path", "out", "--log_samples", "--json")
    assert code == 0, err
    found = json.loads(out)
    about = found["config"]["medbench"]
    assert about["run"] == run.name and found["config"]["limit"] == 4
    assert {"closed_accuracy,none", "open_recall,none"} <= set(found["results"]["toy"])
    (results,), (samples,) = Path("out").glob("*/results_*.json"), Path("out").glob("*/samples_toy_*.jsonl")
    stored = json.loads(results.read_text())
    assert stored["results"] == found["results"] and stored["config"]["medbench"] == about
    assert stored["model_name"] == f"tiny-lora-{about['identity'][:12]}" == results.parent.name
    assert [json.loads(line)["doc"]["id"] for line in samples.read_text().splitlines()] == ["5", "6", "7", "8"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"answers_{about['identity'][:16]}_rank0.db"]
    code, out, err = call(capfd, *words, "--likelihood")
    assert code == 0, err
    assert about["identity"] in out and "toy_by_likelihood" in out and "choice_accuracy" in out


WRONG: dict[str, tuple[list[object], str]] = {
    "task": (["--tasks", "phantom_yesn"], "unknown task 'phantom_yesn'; did you mean phantom_yesno"),
    "trained on": (["--tasks", "llava_med_instruct"], "can only be trained on"),
    "argument": (["--model_args", "adaptr=x"], "unknown argument 'adaptr'; did you mean adapter"),
    "no value": (["--model_args", "adapter"], "expected key=value, found 'adapter'"),
    "dtype": (["--model_args", "dtype=float31"], "dtype=float31: did you mean float32"),
    "batch": (["--model_args", "batch_size=auto"], "batch_size=auto: expected a whole number from 1 on"),
    "backbone": (["--model_args", "backbone=nano-v"], "unknown backbone 'nano-v'; did you mean nano-vl"),
    "adapter": (
        ["--model_args", "adapter=0a1b"],
        "0a1b: no run folder, and no run in results/runs whose hash begins so",
    ),
    "folder": (["--model_args", "adapter=empty"], r"empty: not a peft adapter \(no adapter_config\.json\)"),
    "data": (["--tasks", "vqa_rad"], r"task vqa_rad needs data: pass --data-root, or get VQA-RAD"),
    "wrong root": (["--tasks", "slake", "--data-root", "empty"], "task slake: no data in empty/slake"),
    "samples": (["--log_samples"], "--log_samples: .* add --output_path"),
    "open": (["--tasks", "phantom_report", "--likelihood"], "task phantom_report has no closed questions"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_request_is_one_line(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    words, message = WRONG[name]
    code, out, err = call(capfd, *([] if "--tasks" in words else ["--tasks", "phantom_yesno"]), *words)
    assert (code, out) == (2, ""), err
    assert re.fullmatch(rf"medbench: .*{message}.*\n", err), err
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_broken_image_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = make_toy(tmp_path, train=1, test=2)
    image = toy.folder / "images" / "test1.png"
    image.write_bytes(image.read_bytes()[:60])
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capfd, "--tasks", toy.card, "--data-root", toy.root, "--model_args", "device=cpu")
    assert (code, out) == (1, "")
    assert re.fullmatch(r"medbench: item 5: image .*test1\.png: .*", err.splitlines()[-1]), err


def test_without_lm_eval_the_extra_is_named(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code, out, err = call(capfd, "--tasks", "phantom_yesno")
    assert (code, out) == (2, "")
    assert err == 'medbench: lm-eval is not installed; get it with: pip install "medbench[lm-eval]"\n'


def test_a_run_whose_weights_are_not_its_own_is_not_served(small: Toy, tiny: Path, tmp_path: Path) -> None:
    import shutil

    folder = do(small, tiny, tmp_path)
    args = ModelArgs(backbone=str(tiny), adapter=str(folder))
    with pytest.raises(MedbenchError, match="its backbone tiny was a folder; say where it lies: backbone=FOLDER"):
        MedbenchLM(ModelArgs(adapter=str(folder)))
    with pytest.raises(MedbenchError, match="backbone nano-vl holds other weights than the run's"):
        MedbenchLM(ModelArgs(backbone="nano-vl", adapter=str(folder)))
    weights = folder / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(MedbenchError, match="these are not the weights that the run was tested with"):
        MedbenchLM(args)
    shutil.rmtree(folder / "adapter")
    with pytest.raises(MedbenchError, match=r"its weights are not in .*, so there is no model to serve"):
        MedbenchLM(args)


def test_medbench_does_not_import_lm_eval() -> None:
    code = "import sys, medbench, medbench.cli, medbench.run; print('lm_eval' in sys.modules); "
    code += "sys.modules['lm_eval'] = None; from medbench.harness import dataset, process_results"  # works without, too
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
