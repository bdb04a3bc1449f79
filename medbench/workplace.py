"""Where a run is computed: the device, and this process's place among those of one run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from medbench.errors import RequestError
from medbench.job import Job


@dataclass(frozen=True)
class Workplace:
    """Where a run is computed: this process's device, and its place among the processes of one run."""

    device: torch.device
    dtype: torch.dtype
    state: Any

    @classmethod
    def of(cls, job: Job) -> Workplace:
        """Picks the device and joins the other processes, if there are any."""
        from accelerate import PartialState

        quiet()
        device = choose_device(job.device)
        state = PartialState(cpu=device.type == "cpu")
        if state.num_processes > 1:
            device = state.device
        if device.type == "cuda":
            torch.cuda.set_device(device)
        return cls(device, getattr(torch, job.spec.dtype), state)

    @property
    def is_first(self) -> bool:
        """Whether this process does what only one may do."""
        return bool(self.state.is_main_process)

    def wait(self) -> None:
        """Waits for the other processes."""
        self.state.wait_for_everyone()


def choose_device(asked: str) -> torch.device:
    """The device of a name; `auto` is a GPU where there is one.

    Raises:
        RequestError: there is no such device here.
    """
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RequestError(f"--device {asked}: not available here ({str(error).splitlines()[0]})") from error
    return device


def quiet() -> None:
    """Keeps the libraries' own bars and chatter off stderr; errors stay."""
    import warnings

    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|peft|torch")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
