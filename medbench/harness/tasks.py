"""Our tasks in lm-eval: the data behind the cards' `!function` fields, and cards as configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medbench.catalog import Catalog, read_yaml
from medbench.data.card import Card, Metadata
from medbench.data.item import Item, lettered
from medbench.data.load import limited, load_items
from medbench.errors import RequestError
from medbench.harness.scoring import metric_list, process_answer, process_likelihoods

#: What the name of a task asked by likelihood ends in: it has other figures than the same questions by generation.
BY_LIKELIHOOD = "_by_likelihood"


def dataset(**metadata: Any) -> dict[str, Any]:
    """A card's published splits as `datasets.Dataset`, in the card's order.

    Args:
        metadata: the card's `metadata:` block, which lm-eval merges with what `--metadata '{"data_root": "DIR"}'` says;
            beside it `data_root` (default: `medbench.toml`, else the hub) and `task`, the card's name, where it cannot
            be told from the metadata.

    Returns:
        Split name -> data set with columns id, image (read on first use), question, answer, type, question_type, kind,
        options (as a prompt shows them), choices (the same as a list; both empty unless the question is multiple
        choice) and candidates (the answers whose likelihood is compared; none for open questions).

    Raises:
        RequestError: the metadata is no card's, or the data is not there.
    """
    catalog = Catalog()
    root = metadata.get("data_root") or catalog.settings.data_root
    card = _card_of(metadata, catalog)
    return {
        split: table(card, load_items(card, split, Path(root) if root else None).items)
        for split in card.metadata.splits
    }


def task_config(
    name: str,
    data_root: Path | None = None,
    likelihood: bool = False,
    limit: int | None = None,
    catalog: Catalog | None = None,
) -> dict[str, Any]:
    """A card as a configuration for `lm_eval.simple_evaluate(tasks=[...])`, wherever the card lies.

    Nothing in the card is executed: what its `!function` fields name is replaced by this package's functions. All
    figures that the task's kind has are computed, also those that are no mean over items.

    Args:
        name: of a task, or the path of its card.
        data_root: where the data lies (default: as `medbench.toml` says, else the hub).
        likelihood: ask the closed questions by the likelihood of their candidate answers instead of by generation; the
            task is then named `NAME_by_likelihood` and has the figures that need probabilities.
        limit: only the first items, as `medbench run --limit` counts them: of all, closed or open.
        catalog: where names are looked up.

    Raises:
        RequestError: no such task, one that is only trained on, or one without closed questions to compare.
    """
    catalog = catalog or Catalog()
    card = catalog.task(name)
    if card.metadata.kind == "classification":
        raise RequestError(f"task {name} is a classification, which lm-eval does not have; use medbench run")
    if card.task is None:
        raise RequestError(f"task {name} can only be trained on, so lm-eval cannot test it")
    if likelihood and card.metadata.closed.rule == "none":
        raise RequestError(f"task {name} has no closed questions, so there are no likelihoods to compare")
    path = Path(name) if name.endswith((".yaml", ".yml")) else catalog.paths("tasks")[name]
    root = data_root or catalog.settings.data_root

    def custom_dataset(**metadata: Any) -> dict[str, Any]:
        items = limited(load_items(card, "test", root).items, limit, "test")
        asked = [item for item in items if item.candidates or not likelihood]
        if not asked:
            raise RequestError(f"task {name}: none of the first {len(items)} questions has answers to compare")
        return {"test": table(card, asked)}

    # Few-shot examples are not shown, so nothing of the training data is read.
    unread = ("training_split", "validation_split")
    content = {key: value for key, value in read_yaml(path).items() if key not in unread}
    content |= {"custom_dataset": custom_dataset, "metric_list": metric_list(card.metadata.kind, likelihood)}
    if not likelihood:
        return content | {"process_results": process_answer}
    del content["generation_kwargs"]
    return content | {
        "task": card.name + BY_LIKELIHOOD,
        "output_type": "multiple_choice",
        "doc_to_choice": "candidates",
        "target_delimiter": "",
        "process_results": process_likelihoods,
    }


def table(card: Card, items: Sequence[Item]) -> Any:
    """Items as a data set in memory (columns: see `dataset`); the images are looked up by their keys and not read."""
    import datasets

    from medbench.harness.images import CardImage

    images: dict[str, CardImage] = {}
    for item in items:
        images.setdefault(item.image.key, CardImage(item))

    def shown(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return batch | ({"image": [images[key] for key in batch["image"]]} if "image" in batch else {})

    texts: dict[str, list[Any]] = {
        "id": [item.id for item in items],
        "image": [item.image.key for item in items],
        "question": [item.question for item in items],
        "answer": [item.answer for item in items],
        "type": [item.type for item in items],
        "question_type": [item.question_type for item in items],
        "kind": [card.metadata.kind] * len(items),
        "options": [lettered(item.options) for item in items],
    }
    lists: dict[str, list[Any]] = {
        "choices": [list(item.options) for item in items],
        "candidates": [list(item.candidates) for item in items],
    }
    text = datasets.Value("string")
    features = dict.fromkeys(texts, text) | {name: datasets.List(text) for name in lists}
    found = datasets.Dataset.from_dict(texts | lists, features=datasets.Features(features))
    found.set_transform(shown)
    return found


def _card_of(metadata: Mapping[str, Any], catalog: Catalog) -> Card:
    """The card that a `metadata:` block is of: the one that is named, the file that lm-eval read, or one like it."""
    own = Metadata.model_validate({key: value for key, value in metadata.items() if key in Metadata.model_fields})
    if "task" in metadata:
        named = [str(metadata["task"])]
    else:
        named = [str(metadata.get("config_source", "")), *catalog.paths("tasks")]
    for name in named:
        try:
            card = catalog.task(name)
        except RequestError:  # a file that includes a card, say
            continue
        if card.metadata == own:
            return card
    raise RequestError("lm-eval: the metadata is not that of a card in the catalogue; install the card's folder")
