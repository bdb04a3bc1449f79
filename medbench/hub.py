"""The one door to the hub. Needs the network; everything behind it works on the local snapshot."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from medbench.errors import RequestError

ADAPTER_FILES = ("adapter_*.safetensors", "*.json", "trained_images.txt")
CONFIG_FILES = ("*.json", "*.jinja")
CLIP_FILES = ("open_clip_*.safetensors", "*.json", "*.txt", "tokenizer.model")
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer.model")


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name))


def snapshot(
    name: str,
    kind: Literal["model", "dataset"],
    files: Sequence[str] | None = None,
    revision: str | None = None,
) -> Path:
    """The local folder of a hub repository, downloaded if need be; its last part is the commit.

    Args:
        name: owner/name.
        kind: of the repository.
        files: patterns of the files that are wanted; None for all. Weights are only taken as safetensors.
        revision: a commit, tag or branch.

    Raises:
        RequestError: the hub cannot be reached, has no such repository, or refuses it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        patterns = list(files) if files is not None else None
        return Path(snapshot_download(name, repo_type=kind, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        why = "no connection, and not in the cache" if isinstance(error, LocalEntryNotFoundError) else _reason(error)
        raise RequestError(f"{name} cannot be fetched from the hub: {why}") from error


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
