"""Loading an adapter so that everything in its file is used and everything it needs was there.

`PeftModel.from_pretrained` only warns about missing tensors and is silent about superfluous ones: after a
rename in a library an adapter then evaluates as its untrained self.
"""

from pathlib import Path

from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import nn

from medbench.errors import RequestError, WorkError


def load_adapter_strict(
    model: nn.Module, folder: str | Path, *, adapter_name: str = "default", is_trainable: bool = False
) -> PeftModel:
    """Put a saved adapter of any peft method onto a base model; any mismatch is an error.

    Args:
        model: The base model; changed in place, as `PeftModel.from_pretrained` does. After an error it is
            the plain base model again.
        folder: A local folder with `adapter_config.json` and `adapter_model.safetensors`.
        adapter_name: Name that the adapter gets.
        is_trainable: Leave the adapter's weights trainable and the model in its mode, to go on training.

    Returns:
        The model with the adapter, in evaluation mode unless `is_trainable`.

    Raises:
        RequestError: The folder holds no adapter, only a pickled one, or one for other layers than the model has.
        WorkError: The file is damaged; or a tensor is missing, superfluous, or of another shape.
    """
    folder = Path(folder)
    weights = folder / SAFETENSORS_WEIGHTS_NAME
    if not (folder / CONFIG_NAME).is_file():
        raise RequestError(f"{folder} is no adapter: it holds no {CONFIG_NAME}")
    if not weights.is_file():
        pickled = sorted(path.name for path in folder.glob("adapter_model.*"))
        found = (
            f"only {', '.join(pickled)}; pickled weights are not loaded, save them as safetensors" if pickled else ""
        )
        raise RequestError(f"{folder} holds no {SAFETENSORS_WEIGHTS_NAME}{': ' + found if found else ''}")
    stored = stored_shapes(weights)

    config = _read_config(folder)
    config.inference_mode = not is_trainable
    wrapper = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type or "", PeftModel)
    made_for = config.base_model_name_or_path or "another model"
    hooks = set(model._forward_pre_hooks)
    try:
        peft_model: PeftModel = wrapper(model, config, adapter_name)
    except ValueError as error:  # peft found no module with such a name
        for hook in set(model._forward_pre_hooks) - hooks:
            del model._forward_pre_hooks[hook]
        raise RequestError(f"{folder} fits no layer of this model; it was made for {made_for}") from error
    try:
        try:
            result = peft_model.load_adapter(str(folder), adapter_name, is_trainable=is_trainable)
        except RuntimeError as error:
            # torch lists every tensor whose shape differs on a line of its own
            lines = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
            what = first_names(lines) or error
            raise WorkError(f"{weights} does not fit the model: {what} (it was made for {made_for})") from error
        except KeyError as error:
            raise WorkError(f"{weights} lacks {error.args[0]}") from error
        missing, unexpected = list(result.missing_keys), list(result.unexpected_keys)
        if missing:
            raise WorkError(f"{weights} lacks {len(missing)} tensors of the adapter: {first_names(missing)}")
        if unexpected:
            raise WorkError(
                f"{weights} holds {len(unexpected)} of {len(stored)} tensors that the model has no place "
                f"for: {first_names(unexpected)}"
            )
    except WorkError:
        unload = getattr(peft_model, "unload", None)
        if unload is not None:
            unload()
        raise
    return peft_model


def stored_shapes(weights: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a safetensors file; a `WorkError` when it is truncated or damaged."""
    try:
        with safe_open(weights, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WorkError(f"{weights} is damaged or incomplete: {error}") from error


def _read_config(folder: Path) -> PeftConfig:
    """The configuration, read by the class of its method: that is what tells it that weights follow."""
    try:
        kind = PeftConfig._get_peft_type(str(folder))
        return PEFT_TYPE_TO_CONFIG_MAPPING[kind].from_pretrained(str(folder))
    except (KeyError, ValueError, TypeError) as error:
        raise WorkError(f"{folder / CONFIG_NAME} cannot be read: {error}") from error


def first_names(names: list[str], count: int = 3) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
