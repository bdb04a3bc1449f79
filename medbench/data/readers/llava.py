"""Layout `llava_conversations`: LLaVA's training files, a list of conversations about an image each, to train on.

Records are `{id, image, conversations: [{from: human, value}, {from: gpt, value}, ...]}`. Each pair of turns is an
item: the question is the human's turn, the answer the model's. From the second pair on, the question is preceded by
the earlier turns as text (`Q: ...`, `A: ...`, a line each), since it may refer to them. The placeholder `<image>` is
taken out: the image comes first in every prompt. An item's id is `<place of the record in the file>-<pair>`, both from
0, because the files' own ids may repeat.

Options: `files`, split -> file name; `images`, the images folder (default `images`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medbench.data.item import FileImage
from medbench.data.readers import Row, image_field, text_field
from medbench.data.readers.json_rows import missing, read_records

#: The second is how some of LLaVA-Med's files spell it.
TURNS = ("conversations", "conversatons")


def find(folder: Path, options: Mapping[str, Any]) -> str | None:
    """None when the files and the images folder are there."""
    return missing(folder, [*options["files"].values(), options.get("images", "images")])


def rows(folder: Path, options: Mapping[str, Any], split: str) -> list[Row]:
    """The pairs of turns of a file, in its order."""
    path = folder / options["files"][split]
    images = folder / options.get("images", "images")
    return [row for number, record in enumerate(read_records(path)) for row in _pairs(record, number, path, images)]


def _pairs(record: Mapping[str, Any], number: int, path: Path, images: Path) -> list[Row]:
    try:
        if record.get("image") is None:
            raise KeyError("has no 'image'; only conversations about an image can be trained on")
        name = image_field(record, "image")
        turns = _turns(record)
    except KeyError as error:
        about = f"conversation {record['id']}" if "id" in record else "the conversation"
        return [Row(f"{number}-0", error=f"item {number}-0 in {path}: {about} {error.args[0]}")]
    image = FileImage(name, images / name)
    found, earlier = [], ""
    for k, (question, answer) in enumerate(turns):
        found.append(Row(f"{number}-{k}", image, f"{earlier}Q: {question}" if earlier else question, answer))
        earlier += f"Q: {question}\nA: {answer}\n"
    return found


def _turns(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The pairs (question, answer) of a conversation; KeyError with a message fit for a user."""
    name = next((name for name in TURNS if name in record), TURNS[0])
    turns = record.get(name)
    if not isinstance(turns, list) or not turns or len(turns) % 2:
        found = f"{len(turns)}" if isinstance(turns, list) else type(turns).__name__
        raise KeyError(f"should have pairs of turns in {name!r}, found {found}")
    texts = []
    for place, turn in enumerate(turns):
        speaker = ("human", "gpt")[place % 2]
        if not isinstance(turn, Mapping) or turn.get("from") != speaker:
            said = turn.get("from") if isinstance(turn, Mapping) else turn
            raise KeyError(f"turn {place + 1} should be from {speaker!r}, is from {said!r}"[:120])
        try:
            text = text_field(turn, "value").replace("<image>", "").strip()
        except KeyError as error:
            raise KeyError(f"turn {place + 1}: {error.args[0]}") from error
        if not text:
            raise KeyError(f"turn {place + 1} has no text")
        texts.append(text)
    return list(zip(texts[::2], texts[1::2], strict=True))
