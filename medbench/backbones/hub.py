"""Fetches adapters from the hub. Needs the network."""

from __future__ import annotations

import re
from pathlib import Path

from medbench.errors import RequestError


def fetch_adapter(name: str) -> Path:
    """The local folder of a hub adapter `owner/name`: safetensors and configuration only.

    Raises:
        RequestError: not a folder and not a hub id, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise RequestError(f"--adapter {name}: neither a folder nor a hub id owner/name")
    try:
        return Path(snapshot_download(name, allow_patterns=["adapter_*.safetensors", "*.json"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise RequestError(
            f"--adapter {name}: no such folder, and the hub has it not ({type(error).__name__})"
        ) from error
