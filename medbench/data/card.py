"""The task card: data + prompt + metric, one YAML file a task.

A generative card is a valid lm-evaluation-harness task: lm-eval's own fields stand at the top level, everything
of ours under `metadata:`. The prompt (`doc_to_text`), the target (`doc_to_target`) and the generation settings are
read from lm-eval's fields, so there is one source for both. A card that is only trained on has `name:` instead of
`task:`, so that lm-eval, which tests, ignores it. So has a card of kind classification, which lm-eval does not have:
it has none of lm-eval's fields, and its prompts are made from `metadata.classes` and `metadata.templates`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self, TypeVar

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from medbench.data.classes import prompts
from medbench.data.item import lettered
from medbench.data.metadata import ClosedRule as ClosedRule
from medbench.data.metadata import Metadata as Metadata
from medbench.data.metadata import Strict
from medbench.errors import RequestError
from medbench.files import digest

M = TypeVar("M", bound=BaseModel)
IMAGE_TOKEN = "<image>"  # noqa: S105 (lm-eval's placeholder for an image)


class Question(Protocol):
    """What a prompt may be rendered from."""

    @property
    def question(self) -> str:
        """The question, as published."""
        ...

    @property
    def answer(self) -> str:
        """The gold answer, as published."""
        ...

    @property
    def options(self) -> Sequence[str]:
        """The answers that the question offers; none unless it is multiple choice."""
        ...


class GenerationSettings(Strict):
    """lm-eval's generation settings; decoding is greedy."""

    until: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    max_gen_toks: Annotated[int, Field(gt=0, le=4096)] = 32
    do_sample: Literal[False] = False
    temperature: Annotated[float, Field(ge=0, le=0)] = 0.0


class Metric(Strict):
    """One entry of lm-eval's `metric_list`."""

    metric: str
    aggregation: Literal["mean"] = "mean"
    higher_is_better: bool = True


class Card(Strict):
    """A task."""

    task: str | None = None
    own_name: Annotated[str | None, Field(alias="name")] = None
    custom_dataset: str | None = None
    training_split: str | None = None
    validation_split: str | None = None
    test_split: str = "test"
    output_type: Literal["generate_until"] = "generate_until"
    doc_to_image: tuple[str, ...] = ()
    doc_to_text: str = ""
    doc_to_target: str = "{{answer}}"
    process_results: str | None = None
    generation_kwargs: GenerationSettings = GenerationSettings()
    metric_list: tuple[Metric, ...] = ()
    metadata: Metadata

    @field_validator("doc_to_text")
    @classmethod
    def _one_image_first(cls, value: str) -> str:
        if not value.startswith(IMAGE_TOKEN) or value.count(IMAGE_TOKEN) != 1:
            raise ValueError(f"must begin with {IMAGE_TOKEN} and hold it once")
        return value

    @field_validator("doc_to_text", "doc_to_target")
    @classmethod
    def _template(cls, value: str) -> str:
        try:
            _template(value).render(question="question", answer="answer", options="options")
        except Exception as error:  # a template may raise anything
            raise ValueError(f"not a Jinja template of question, answer and options ({error})") from error
        return value

    @model_validator(mode="after")
    def _tested_or_trained_on(self) -> Self:
        if self.metadata.kind == "classification":
            return self._without_lm_eval()
        if "doc_to_text" not in self.model_fields_set:
            raise ValueError("doc_to_text: is missing; add it")
        if (self.task is None) == (self.own_name is None):
            raise ValueError("should have either 'task' (lm-eval's, to be tested) or 'name' (only to be trained on)")
        tested = "test" in self.metadata.splits
        if self.task is not None and not tested:
            raise ValueError("a task needs a 'test' split; one that is only trained on has 'name' instead of 'task'")
        if self.task is None and tested:
            raise ValueError("has a 'test' split, so its name should stand in 'task' (lm-eval's), not in 'name'")
        for field in ("custom_dataset", "doc_to_image", "process_results", "metric_list"):
            if tested and not getattr(self, field):
                raise ValueError(f"{field} is missing; add it")
        return self

    def _without_lm_eval(self) -> Self:
        """A card of kind classification: lm-eval does not have it, so its fields would say nothing."""
        if self.own_name is None:
            raise ValueError("a task of kind classification has 'name' instead of 'task': lm-eval does not have it")
        for field in sorted(self.model_fields_set - {"own_name", "metadata"}):
            raise ValueError(f"{field}: not for kind classification; its prompts are metadata.classes and templates")
        return self

    @classmethod
    def parse(cls, content: dict[str, Any], path: Path) -> Card:
        """Checks a card's content.

        Raises:
            RequestError: names the file, the field and what would be right.
        """
        card = validated(cls, content, path)
        if card.name != path.stem:
            field = "name" if card.task is None else "task"
            told = f"is {card.name!r} but the file is named {path.stem!r}; make them equal"
            raise RequestError(f"{path}: {field}: {told}")
        return card

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task or self.own_name or ""

    @property
    def tested(self) -> bool:
        """Whether it has a test; else it is only trained on."""
        return "test" in self.metadata.splits

    def prompts(self, single: bool) -> dict[str, list[str]]:
        """Class -> its prompts, in the order of the classes; none unless the kind is classification.

        Args:
            single: the first template with the first phrase of each class; else all with all.
        """
        return prompts(self.metadata.classes, self.metadata.templates, single)

    @property
    def digest(self) -> str:
        """The sha256 over everything in the card that can change a figure (not licence, citation, prose).

        Fields at their default are left out, so that a field added later does not change the digest of older cards.
        """
        about = {"description", "licence", "access", "obtain", "citation", "confidence", "hub", "dataset"}
        about |= {"images_of", "always_yes"}
        content = self.model_dump(
            mode="json", exclude_defaults=True, exclude={"metadata", "custom_dataset", "process_results"}
        )
        metadata = self.metadata.model_dump(mode="json", exclude_defaults=True, exclude=about)
        return digest(content | {"metadata": metadata})

    def render_prompt(self, item: Question) -> str:
        """The user's turn for an item, without the image placeholder (the image always comes first)."""
        return _render(self.doc_to_text, item).removeprefix(IMAGE_TOKEN).strip()

    def render_target(self, item: Question) -> str:
        """The answer to train on."""
        return _render(self.doc_to_target, item).strip()


def validated(model: type[M], content: dict[str, Any], path: Path) -> M:
    """`model(**content)`, or a `RequestError` with file, field and remedy."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "content"
        message = {
            "missing": "is missing; add it",
            "extra_forbidden": "is not a field of this file; remove or rename it",
        }.get(first["type"], first["msg"].removeprefix("Value error, "))
        raise RequestError(f"{path}: {where}: {message}") from error


@lru_cache(maxsize=256)
def _template(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(source)


def _render(source: str, item: Question) -> str:
    try:
        return _template(source).render(question=item.question, answer=item.answer, options=lettered(item.options))
    except Exception as error:  # a template may raise anything
        raise RequestError(f"template {source!r}: {error}") from error
