"""Classifies images by prompts with a dual encoder: an image's class is the one whose prompts it is nearest to.

A class's weight is the mean of the L2-normalised embeddings of its prompts, normalised again (Radford et al. 2021,
arXiv 2103.00020, section 3.1.4; open_clip's `build_zero_shot_classifier`); logits are cosines at the model's scale.
Nothing depends on the other images of a batch. Images are decoded by threads while the ones before are embedded, and
memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from medbench.data.item import BadItemError, Item, decode, reason
from medbench.files import digest
from medbench.inference.embeddings import EmbeddingStore, content_key
from medbench.inference.predict import Prediction, candidate_probabilities
from medbench.spec import SPEC_VERSION

if TYPE_CHECKING:
    from medbench.backbones.clip import Clip

#: Prompts that are embedded at a time.
TEXT_BATCH = 256
#: Threads that decode and resize; Pillow works outside Python's lock.
WORKERS = 2


def class_weights(
    clip: Clip, prompts: Mapping[str, Sequence[str]], store: EmbeddingStore | None = None
) -> torch.Tensor:
    """The classes' weights.

    Args:
        clip: the model, in evaluation mode.
        prompts: class -> its prompts.
        store: of this model's text embeddings.

    Returns:
        [C, D], float32, each row of length 1, on the model's device; in the order of `prompts`.
    """
    texts = list(dict.fromkeys(text for of_class in prompts.values() for text in of_class))
    embedded = _embed_texts(clip, texts, store)
    rows = [torch.stack([embedded[text] for text in of_class]).mean(0) for of_class in prompts.values()]
    return F.normalize(torch.stack(rows), dim=-1).to(clip.device)


@torch.inference_mode()
def _embed_texts(clip: Clip, texts: Sequence[str], store: EmbeddingStore | None) -> dict[str, torch.Tensor]:
    keys = {text: content_key(text.encode()) for text in texts}
    known = store.get(list(keys.values())) if store else {}
    missing = [text for text in texts if keys[text] not in known]
    for start in range(0, len(missing), TEXT_BATCH):
        chosen = missing[start : start + TEXT_BATCH]
        _, found, _ = clip.forward(tokens=clip.tokenizer(list(chosen)))
        assert found is not None
        rows = found.float().cpu().numpy()
        fresh = {keys[text]: row for text, row in zip(chosen, rows, strict=True)}
        if store:
            store.put(fresh)
        known |= fresh
    return {text: torch.from_numpy(np.array(known[key])) for text, key in keys.items()}


def store_namespace(clip: Clip, weights: str, dtype: str, tower: str) -> str:
    """What decides the embeddings of one unadapted tower.

    Weights, size and normalisation of images, dtype; the kind of device, which rounds in its own way; and the version
    of the code behind figures, so that what an older one has embedded is not taken for what this one would.
    """
    about = [weights, clip.commit, dtype, tower, clip.image_size, list(clip.mean), list(clip.std), str(clip.transform)]
    return digest([*about, clip.device.type, SPEC_VERSION])


class ImageEmbedder:
    """Embeds images, L2-normalised; those of a frozen tower come from a store where they are in it.

    Attributes:
        encoded: images that went through the tower.
        cached: whether there is a store.
    """

    def __init__(self, clip: Clip, store: EmbeddingStore | None = None, workers: int = WORKERS):
        """Args: the model; where its image embeddings are kept; decoding threads."""
        self.clip, self.workers = clip, workers
        # What a blind model is shown is not what an item's bytes say.
        self.store = None if clip.blind else store
        self.encoded = 0
        self.cached = self.store is not None

    def batches(self, items: Sequence[Item], batch_size: int) -> Iterator[tuple[Sequence[Item], torch.Tensor]]:
        """The items, `batch_size` at a time, with their images' embeddings [B, D], float32, on the model's device.

        Raises:
            BadItemError: an image cannot be read.
        """
        cut = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                begun = self._begin(pool, cut[0]) if cut else []
                for number, batch in enumerate(cut):
                    # One batch ahead: the next images are decoded while these are embedded.
                    current, begun = begun, self._begin(pool, cut[number + 1]) if number + 1 < len(cut) else []
                    yield batch, self._embedded(current)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self, pool: ThreadPoolExecutor, items: Sequence[Item]) -> list[_Begun]:
        if self.store is None:
            return [_Begun(b"", None, pool.submit(self.pixels, item)) for item in items]
        read = list(pool.map(_read, items))
        keys = [content_key(data) for data in read]
        known = self.store.get(keys)
        return [
            _Begun(key, known[key], None) if key in known else _Begun(key, None, pool.submit(self._decoded, item, data))
            for key, item, data in zip(keys, items, read, strict=True)
        ]

    def pixels(self, item: Item) -> torch.Tensor:
        """What the tower is given of an item, [3, H, W].

        Raises:
            BadItemError: the image cannot be read.
        """
        return self.clip.transform(self.clip.load_image(item))

    def _decoded(self, item: Item, data: bytes) -> torch.Tensor:
        try:
            return self.clip.transform(decode(data))
        except (OSError, ValueError, SyntaxError) as error:
            raise BadItemError(f"item {item.id}: image {item.image.place}: {reason(error)}") from error

    @torch.inference_mode()
    def _embedded(self, begun: Sequence[_Begun]) -> torch.Tensor:
        fresh = [n for n, each in enumerate(begun) if each.pixels is not None]
        rows: dict[int, torch.Tensor] = {
            n: torch.from_numpy(np.array(each.vector)) for n, each in enumerate(begun) if each.vector is not None
        }
        if fresh:
            pixels = torch.stack([found.result() for n in fresh if (found := begun[n].pixels) is not None])
            image, _, _ = self.clip.forward(pixels=pixels)
            assert image is not None
            made = image.float().cpu()
            rows |= dict(zip(fresh, made, strict=True))
            self.encoded += len(fresh)
            if self.store is not None:
                self.store.put({begun[n].key: row.numpy() for n, row in zip(fresh, made, strict=True)})
        return torch.stack([rows[n] for n in range(len(begun))]).to(self.clip.device)


@dataclass(frozen=True)
class _Begun:
    """An image on its way: its key, and its stored embedding or its pixels to be."""

    key: bytes
    vector: NDArray[np.float32] | None
    pixels: Future[torch.Tensor] | None


def _read(item: Item) -> bytes:
    try:
        return item.image.read()
    except (OSError, ValueError) as error:
        raise BadItemError(f"item {item.id}: image {item.image.place}: {reason(error)}") from error


class ZeroShotPredictor:
    """Classifies the items of one task with one model."""

    def __init__(
        self,
        clip: Clip,
        prompts: Mapping[str, Sequence[str]],
        batch_size: int,
        images: EmbeddingStore | None = None,
        texts: EmbeddingStore | None = None,
    ):
        """The classes' weights are computed here.

        Args:
            clip: the model, in evaluation mode.
            prompts: class -> its prompts.
            batch_size: images embedded at a time.
            images: of this model's image embeddings; None where its visual tower is adapted.
            texts: of its text embeddings; None where its text tower is adapted.
        """
        self.clip, self.batch_size = clip, batch_size
        self.classes = list(prompts)
        with torch.inference_mode():
            self.weights = class_weights(clip, prompts, texts)
        self.features = ImageEmbedder(clip, images)

    @torch.inference_mode()
    def predict(self, items: Sequence[Item], step: Callable[[int], None]) -> list[Prediction]:
        """Classifies a chunk.

        Args:
            items: of one chunk.
            step: called with the number of images classified at a time.

        Returns:
            One row an item, in the order given: id, cluster, prediction (the most probable class, the first of equals)
            and probabilities (JSON, class -> probability).

        Raises:
            BadItemError: an image cannot be read.
            WorkError: the model gives no finite logits.
        """
        rows: list[Prediction] = []
        for batch, embedded in self.features.batches(items, self.batch_size):
            logits = self.clip.scale.float() * embedded @ self.weights.T
            for item, scores in zip(batch, logits.cpu().tolist(), strict=True):
                said = candidate_probabilities(self.classes, scores)
                best = max(range(len(scores)), key=scores.__getitem__)
                rows.append(
                    {
                        "id": item.id,
                        "cluster": item.cluster,
                        "prediction": self.classes[best],
                        "probabilities": said,
                    }
                )
            step(len(batch))
        return rows
