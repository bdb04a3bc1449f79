"""The models behind the plug-ins of `medbench.scoring.report_plugins`, each read from its folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import Any

from medbench.errors import WorkError
from medbench.scoring.report_text import words

Step = Callable[[int, int], None]
BATCH = 32
LABELS = 14
#: Cardiomegaly, edema, consolidation, atelectasis, pleural effusion in CheXbert's order of 14.
FIVE = (1, 4, 5, 7, 9)
_POSITIVE = (1, 3)  # CheXbert's classes: blank, positive, negative, uncertain


def chexbert(folder: Path, golds: Sequence[str], predictions: Sequence[str], step: Step) -> dict[str, list[float]]:
    """Labels both sides with CheXbert's network: counts of shared, said and wanted labels, of 14 and of 5.

    `config.json` in the folder, if there is one, describes another BERT than bert-base-uncased.

    Raises:
        WorkError: the weights do not fit.
    """
    model, tokenizer = _load_chexbert(folder)
    total = len(golds) + len(predictions)
    found: list[list[bool]] = []
    for start, texts in _batches([*golds, *predictions]):
        found += _labels(model, tokenizer, texts)
        step(start + len(texts), total)
    pairs = list(zip(found[: len(golds)], found[len(golds) :], strict=True))
    columns: dict[str, list[float]] = {}
    for prefix, kept in (("chexbert", range(LABELS)), ("chexbert_5", FIVE)):
        columns[f"{prefix}_hits"] = [float(sum(w[i] and s[i] for i in kept)) for w, s in pairs]
        columns[f"{prefix}_said"] = [float(sum(s[i] for i in kept)) for _, s in pairs]
        columns[f"{prefix}_wanted"] = [float(sum(w[i] for i in kept)) for w, _ in pairs]
    return columns


def radgraph(folder: Path, golds: Sequence[str], predictions: Sequence[str], step: Step) -> dict[str, list[float]]:
    """RadGraph F1 (reward level `partial`) of the package `radgraph`, with RadGraph-XL."""
    import torch
    from radgraph import F1RadGraph

    cuda = 0 if torch.cuda.is_available() else -1
    scorer = F1RadGraph("partial", model_type="radgraph-xl", model_cache_dir=str(folder), cuda=cuda)

    def score(wanted: list[str], given: list[str]) -> Sequence[float]:
        return list(scorer(refs=wanted, hyps=given)[1])

    return {"radgraph_f1": _in_parts(score, golds, predictions, step)}


def ratescore(folder: Path, golds: Sequence[str], predictions: Sequence[str], step: Step) -> dict[str, list[float]]:
    """RaTEScore of the package `RaTEScore`."""
    import torch
    from RaTEScore import RaTEScore

    scorer = RaTEScore(
        bert_model=str(folder / "RaTE-NER-Deberta"),
        eval_model=str(folder / "BioLORD-2023-C"),
        batch_size=BATCH,
        use_gpu=torch.cuda.is_available(),
    )

    def score(wanted: list[str], given: list[str]) -> Sequence[float]:
        return list(scorer.compute_score(given, wanted))

    return {"ratescore": _in_parts(score, golds, predictions, step)}


def green(folder: Path, golds: Sequence[str], predictions: Sequence[str], step: Step) -> dict[str, list[float]]:
    """GREEN of the package `green-score`."""
    from green_score import GREEN

    with TemporaryDirectory() as scratch:  # for the files that it writes
        scorer = GREEN(str(folder), output_dir=scratch)

        def score(wanted: list[str], given: list[str]) -> Sequence[float]:
            return list(scorer(wanted, given)[2])

        return {"green": _in_parts(score, golds, predictions, step)}


def _in_parts(
    score: Callable[[list[str], list[str]], Sequence[float]],
    golds: Sequence[str],
    predictions: Sequence[str],
    step: Step,
) -> list[float]:
    """A metric over the pairs that have words on both sides, in parts; 0 for the others."""
    found = [0.0] * len(golds)
    asked = [i for i, pair in enumerate(zip(golds, predictions, strict=True)) if all(map(words, pair))]
    for start, part in _batches(asked):
        values = score([golds[i] for i in part], [predictions[i] for i in part])
        for place, value in zip(part, values, strict=True):
            found[place] = float(value)
        step(start + len(part), len(asked))
    return found


def _batches(values: Sequence[Any]) -> Iterator[tuple[int, list[Any]]]:
    for start in range(0, len(values), BATCH):
        yield start, list(values[start : start + BATCH])


def _load_chexbert(folder: Path) -> tuple[Any, Any]:
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    config = BertConfig.from_pretrained(folder) if (folder / "config.json").is_file() else BertConfig()
    model = torch.nn.Module()
    model.bert = BertModel(config)
    model.linear_heads = torch.nn.ModuleList(
        torch.nn.Linear(config.hidden_size, 4 if label < LABELS - 1 else 2) for label in range(LABELS)
    )
    try:
        state = torch.load(folder / "chexbert.pth", map_location="cpu", weights_only=True)["model_state_dict"]
        state = {name.removeprefix("module."): value for name, value in state.items()}
        # Saved by an older transformers, which kept what is now computed.
        state.pop("bert.embeddings.position_ids", None)
        model.load_state_dict(state)
    except (OSError, RuntimeError, LookupError, TypeError, ValueError, EOFError, UnpicklingError) as error:
        raise WorkError(f"{folder / 'chexbert.pth'}: not CheXbert's weights ({str(error)[:200]})") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.eval().to(device), BertTokenizer(str(folder / "vocab.txt"), do_lower_case=True)


def _labels(model: Any, tokenizer: Any, texts: list[str]) -> list[list[bool]]:
    """Which of the 14 labels each text has (positive or uncertain; none without a word)."""
    import torch

    device = next(model.parameters()).device
    longest = min(512, model.bert.config.max_position_embeddings)
    clean = [" ".join(text.split()) for text in texts]
    batch = tokenizer(clean, padding=True, truncation=True, max_length=longest, return_tensors="pt").to(device)
    with torch.inference_mode():
        hidden = model.bert(batch["input_ids"], attention_mask=batch["attention_mask"])[0][:, 0]
        classes = torch.stack([head(hidden).argmax(dim=1) for head in model.linear_heads], dim=1).tolist()
    return [
        [value in _POSITIVE for value in row] if words(text) else [False] * LABELS
        for row, text in zip(classes, texts, strict=True)
    ]
