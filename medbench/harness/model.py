"""lm-eval's model `medbench`: any backbone and adapter of ours, asked by the code that our own runner uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from medbench.errors import RequestError
from medbench.harness.serving import ModelArgs, serve
from medbench.progress import progress_bar

#: Where an answer cache keeps whose answers it holds.
_OWNER = "medbench:model"


@register_model("medbench")
class MedbenchLM(LM):
    """Serves one model of ours: answers to questions about an image, and likelihoods of answers.

    Prompts are those of lm-eval's task, with the model's chat template around them whether lm-eval was told to apply
    one or not; answers are decoded greedily, as long as the task (or `gen_kwargs`) says; batches are ours, so that a
    task's answers are those of our runner.
    """

    MULTIMODAL = True

    def __init__(self, args: ModelArgs | None = None, **model_args: Any):
        """Args: as `ModelArgs` has them, parsed or by name.

        Raises:
            MedbenchError: as `medbench.harness.serving.serve`.
        """
        super().__init__()
        self.served = serve(args or ModelArgs.parse(model_args))
        self.vlm = self.served.vlm
        self._device = self.vlm.device

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> MedbenchLM:
        """The model of `key=value,key=value`; lm-eval's own arguments hold where that says nothing."""
        return cls(ModelArgs.parse_text(arg_string, additional_config))

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> MedbenchLM:
        """The model of a mapping; lm-eval's own arguments hold where that says nothing."""
        return cls(ModelArgs.parse({**(additional_config or {}), **arg_dict}))

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, whose special tokens lm-eval writes into its results."""
        return self.vlm.processor.tokenizer

    @property
    def tokenizer_name(self) -> str:
        """Names prompts in lm-eval's cache of requests: ours are the same for every model."""
        return "medbench"

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template that is laid around every prompt."""
        return str(self.vlm.processor.chat_template)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The user's turn as it is: the template is laid around it when it is answered.

        Raises:
            RequestError: there are further turns, or a system instruction.
        """
        if [turn["role"] for turn in chat_history] != ["user"]:
            raise RequestError(
                "lm-eval: medbench's models answer one question at a time, "
                "without system instruction, few-shot examples or the beginning of an answer"
            )
        return chat_history[0]["content"]

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval's results say about the model; `medbench` holds the adapter's identity."""
        return {
            "model_num_parameters": sum(p.numel() for p in self.vlm.model.parameters()),
            "model_dtype": self.served.about["dtype"],
            "model_sha": self.served.about["identity"],
            "medbench": self.served.about,
        }

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Takes lm-eval's answer cache, whose keys do not say whose answers it holds, only if it is this model's.

        Raises:
            RequestError: it holds answers of another model.
        """
        cache, own = cache_hook.dbdict, self.served.about["identity"]
        if cache is not None:
            owner = cache.get(_OWNER, own if len(cache) == 0 else None)
            if owner != own:
                raise RequestError(
                    f"use_cache: {cache.filename} holds answers of another model ({owner or 'not named'}), "
                    f"this one is {own}; name another file"
                )
            cache[_OWNER] = own
            cache.commit()
        super().set_cache_hook(cache_hook)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers.

        Args:
            requests: lm-eval's instances: (prompt, generation settings, {"visual": [image]}).
            disable_tqdm: unused; there is a bar on terminals only.

        Raises:
            RequestError: a request that is not greedy, or not about one image; before any is answered.
            BadItemError: an image cannot be read.
        """
        from medbench.harness.requests import card_of, item_of, settings_of
        from medbench.inference.predict import Predictor
        from medbench.spec import Generation

        items = [item_of(request) for request in requests]
        parts: dict[Any, list[int]] = {}
        for number, request in enumerate(requests):
            settings = settings_of(request.task_name, request.args[1])
            parts.setdefault((request.task_name, settings), []).append(number)
        answers = [""] * len(items)
        for (task, settings), numbers in parts.items():
            predictor = Predictor(self.vlm, card_of(settings), Generation(self.served.batch_size))
            for place, row in self._answered(task, predictor, [items[n] for n in numbers]):
                number = numbers[place]
                answers[number] = row["prediction"]
                self.cache_hook.add_partial("generate_until", requests[number].args, answers[number])
        return answers

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log p(continuation | image, prompt), summed over its tokens, and whether it is the greedy answer.

        The continuation is taken as it is, right after the chat template's opening of an answer: lm-eval puts no
        space before it where a task has `target_delimiter: ""` or a chat template is applied.

        Args:
            requests: lm-eval's instances: (prompt, continuation, {"visual": [image]}).
            disable_tqdm: unused.

        Raises:
            RequestError: a request that is not about one image, or an empty continuation.
            BadItemError: an image cannot be read.
        """
        from medbench.harness.requests import LikelihoodPredictor, item_of

        asked: dict[tuple[Any, ...], list[int]] = {}
        for number, request in enumerate(requests):
            if not request.args[1]:
                raise RequestError(f"task {request.task_name}: an empty continuation has no likelihood")
            key = (request.task_name, request.args[0], item_of(request).image.key)
            asked.setdefault(key, []).append(number)
        parts: dict[Any, list[list[int]]] = {}
        for (task, *_), numbers in asked.items():
            parts.setdefault(task, []).append(numbers)
        found: dict[int, tuple[float, bool]] = {}
        predictor = LikelihoodPredictor(self.vlm, self.served.batch_size)
        for task, groups in parts.items():
            texts = [list(dict.fromkeys(requests[n].args[1] for n in numbers)) for numbers in groups]
            items = [item_of(requests[numbers[0]], said) for numbers, said in zip(groups, texts, strict=True)]
            for place, row in self._answered(task, predictor, items):
                scores = dict(zip(texts[place], row["scores"], strict=True))
                for number in groups[place]:
                    found[number] = scores[requests[number].args[1]]
                    self.cache_hook.add_partial("loglikelihood", requests[number].args, found[number])
        return [found[number] for number in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Refused: text alone has no place in a chat about an image.

        Raises:
            RequestError: always.
        """
        raise RequestError(
            "lm-eval: medbench's models answer questions about an image; text alone has no perplexity here"
        )

    def _answered(self, task: str, predictor: Any, items: list[Any]) -> Any:
        """(place in `items`, row) of each item, chunk by chunk as our runner goes."""
        from medbench.inference.predict import chunks

        places = {id(item): place for place, item in enumerate(items)}
        with progress_bar(f"lm-eval {task}") as advance:
            done = 0

            def step(count: int) -> None:
                nonlocal done
                done += count
                advance(done, len(items))

            for chunk in chunks(items, self.served.batch_size):
                for item, row in zip(chunk, predictor.predict(chunk, step), strict=True):
                    yield places[id(item)], row
