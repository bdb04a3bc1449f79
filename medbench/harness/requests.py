"""From lm-eval's requests to the items that our predictor answers, and the predictor of likelihoods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from medbench.backbones.vlm import Vlm
from medbench.data.card import IMAGE_TOKEN, Card, GenerationSettings
from medbench.data.item import Item
from medbench.errors import RequestError
from medbench.harness.images import image_ref
from medbench.inference.predict import Prediction, Predictor
from medbench.spec import Generation

#: lm-eval's own default of tokens to generate.
DEFAULT_TOKENS = 256


def settings_of(task: str, given: Mapping[str, Any]) -> GenerationSettings:
    """A request's generation settings.

    Args:
        task: named in errors.
        given: lm-eval's `generation_kwargs`.

    Raises:
        RequestError: they ask for anything but greedy decoding, or for what is not known.
    """
    until = given.get("until") or ()
    stops = [until] if isinstance(until, str) else list(until)
    try:
        return GenerationSettings.model_validate(
            {"max_gen_toks": DEFAULT_TOKENS, **given, "until": tuple(stop for stop in stops if stop)}
        )
    except ValidationError as error:
        name = error.errors()[0]["loc"][0]
        raise RequestError(
            f"task {task}: generation setting {name}={given.get(str(name))!r}: answers are decoded greedily; "
            "known: until, max_gen_toks (1 to 4096), do_sample=false, temperature=0"
        ) from error


def item_of(request: Any, candidates: Sequence[str] = ()) -> Item:
    """The item that asks what a request asks: its prompt, its image, the continuations to compare.

    Raises:
        RequestError: the request is not about exactly one image that comes first.
    """
    context, about = str(request.args[0]).strip(), request.args[-1] if len(request.args) > 2 else {}
    images = about.get("visual") or []
    if len(images) != 1 or set(about) != {"visual"}:
        raise RequestError(
            f"task {request.task_name}: medbench's models answer questions about one image; "
            f"here is one with {len(images) or 'no'} images{' and ' * bool(set(about) - {'visual'})}"
            f"{', '.join(sorted(set(about) - {'visual'}))}"
        )
    if not context.startswith(IMAGE_TOKEN) or context.count(IMAGE_TOKEN) != 1:
        raise RequestError(
            f"task {request.task_name}: a prompt must begin with {IMAGE_TOKEN} and hold it once "
            "(no few-shot examples, no system instruction, no description before it)"
        )
    name = str(request.doc["id"]) if isinstance(request.doc, Mapping) and "id" in request.doc else str(request.doc_id)
    question = context.removeprefix(IMAGE_TOKEN)
    return Item(name, image_ref(images[0]), question, "", bool(candidates), tuple(candidates))


def card_of(settings: GenerationSettings) -> Card:
    """A card whose prompts are the items' questions as they are: lm-eval has rendered them."""
    return Card.model_construct(doc_to_text=IMAGE_TOKEN + "{{question}}", generation_kwargs=settings)


class LikelihoodPredictor(Predictor):
    """Our predictor, asked for what lm-eval wants of a candidate: log-likelihood, and whether it is the greedy answer.

    The log-likelihoods are those that our runner compares.
    """

    def __init__(self, vlm: Vlm, batch_size: int):
        """Args: the model in eval mode; questions at once."""
        super().__init__(vlm, card_of(GenerationSettings()), Generation(batch_size))

    def predict(self, items: Sequence[Item], step: Any) -> list[Prediction]:
        """As `Predictor.predict`; the rows hold `scores`: (log-likelihood, greedy) of each of the item's candidates."""
        lengths = [len(self.vlm.completion_ids(candidate)) for item in items for candidate in item.candidates]
        self.config.max_new_tokens = max(lengths)
        return super().predict(items, step)

    def answer(self, items: Sequence[Item], prompts: Sequence[str]) -> list[Prediction]:
        """Rows with `scores`, see `predict`."""
        answers, first = self.generate(items, prompts)
        rows = self.loglikelihoods(items, prompts, first)
        return [
            {"scores": [(score, self._begins(answer, text)) for text, score in zip(item.candidates, row, strict=True)]}
            for item, answer, row in zip(items, answers.tolist(), rows, strict=True)
        ]

    def _begins(self, answer: list[int], candidate: str) -> bool:
        ids = self.vlm.completion_ids(candidate)
        return answer[: len(ids)] == ids
