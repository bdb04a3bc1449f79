"""From lm-eval's `model_args` to a loaded model and its identity."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import medbench
from medbench.backbones.registry import DEFAULT_BACKBONE, get_backbone
from medbench.catalog import Catalog
from medbench.errors import RequestError, WorkError, did_you_mean
from medbench.files import digest, folder_digest
from medbench.hub import is_hub_id
from medbench.job import Job
from medbench.plan import resolve
from medbench.plan_adapter import adapter_folder
from medbench.request import Request
from medbench.results.record import is_finished, read_record
from medbench.results.routes import find_run
from medbench.spec import Generation, load_spec

if TYPE_CHECKING:
    from medbench.backbones.vlm import Vlm

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ModelArgs:
    """What `--model_args` may say.

    Attributes:
        backbone: a name, folder or hub id [default: that of the adapter, else nano-vl].
        adapter: a run folder (or the first letters of its hash), the folder of a peft adapter, or its hub id.
        dtype: of the weights [default: the run's].
        batch_size: questions answered at a time [default: the run's, else 32].
        device: `auto`, or as torch names it.
        min_pixels: of the image processor, over its own.
        max_pixels: likewise.
    """

    backbone: str | None = None
    adapter: str | None = None
    dtype: str = "auto"
    batch_size: int | None = None
    device: str = "auto"
    min_pixels: int | None = None
    max_pixels: int | None = None

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> ModelArgs:
        """Checks names and values; None and the empty text stand for the default.

        Raises:
            RequestError: an unknown argument or a bad value.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        values = {name: value for name, value in given.items() if value not in (None, "")}
        for name, value in values.items():
            if name not in known:
                raise RequestError(f"model_args: unknown argument {name!r}; {did_you_mean(name, known)}")
            if name in ("batch_size", "min_pixels", "max_pixels"):
                if not str(value).isdecimal() or int(value) < 1:
                    raise RequestError(f"model_args: {name}={value}: expected a whole number from 1 on")
                values[name] = int(value)
            else:
                values[name] = str(value)
        if values.get("dtype", "auto") not in DTYPES:
            raise RequestError(f"model_args: dtype={values['dtype']}: {did_you_mean(values['dtype'], DTYPES)}")
        return cls(**values)

    @classmethod
    def parse_text(cls, text: str, more: Mapping[str, Any] | None = None) -> ModelArgs:
        """The arguments of `key=value,key=value`; `more` holds where the text says nothing."""
        given: dict[str, str] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, sign, value = part.partition("=")
            if not sign:
                raise RequestError(f"model_args: expected key=value, found {part!r}")
            given[name.strip()] = value.strip()
        return cls.parse({**(more or {}), **given})

    @property
    def processor(self) -> dict[str, int]:
        """The image processor's settings."""
        wanted = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        return {name: value for name, value in wanted.items() if value is not None}


@dataclass(frozen=True)
class Served:
    """A loaded model.

    Attributes:
        vlm: the model.
        batch_size: questions answered at a time.
        about: its identity: versions, digests of the weights, what was trained how on what. `identity` is the sha256
            over all of it; where the arithmetic lets answers depend on the batch size, over that too.
    """

    vlm: Vlm
    batch_size: int
    about: dict[str, Any]


def serve(args: ModelArgs) -> Served:
    """Loads a model as a run of ours does before it is tested.

    Raises:
        RequestError: an unknown name, no weights, or an adapter of another backbone.
        WorkError: files are damaged, or not those of the run.
    """
    job = job_of(args)
    import torch

    from medbench.steps import load_run_model
    from medbench.workplace import Workplace, choose_device, quiet

    quiet()
    device = choose_device(args.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    vlm = load_run_model(job, Workplace(device, getattr(torch, job.spec.dtype), None))
    size = job.spec.generation.batch_size
    about = _about(job) | {"backbone_commit": vlm.commit}
    batch = {} if job.spec.dtype == "float32" else {"batch_size": size}
    return Served(vlm, size, about | {"identity": digest(about | batch), "batch_size": size})


def job_of(args: ModelArgs) -> Job:
    """The run whose model is asked for, with the spec that `model_args` make of it; without torch where possible.

    Raises:
        RequestError, WorkError: see `serve`.
    """
    run = None if args.adapter is None else _run_folder(args.adapter)
    if run is not None:
        return _job_of_run(args, run)
    backbone = args.backbone
    if backbone is None and args.adapter is not None:
        from medbench.backbones.adapt import read_origin

        backbone = read_origin(adapter_folder(args.adapter)).backbone
    request = Request(
        tasks=("phantom_yesno",),  # any that needs no data: the spec's tests are not what is asked here
        methods=("none",),
        backbone=backbone or DEFAULT_BACKBONE,
        adapter=args.adapter,
        batch_size=args.batch_size or Generation.batch_size,
        dtype=args.dtype,
        settings={f"processor.{name}": value for name, value in args.processor.items()},
    )
    plan = resolve(request, Catalog())
    (spec,) = plan.specs
    return Job(spec, plan.cards, plan.backbone, Path("lm-eval"), adapter=plan.adapter)


def _run_folder(name: str) -> Path | None:
    """The run folder that a name means; None for a peft adapter."""
    path = Path(name)
    if path.name == "adapter" and (path.parent / "spec.json").exists():
        return path.parent
    if (path / "spec.json").exists():
        return path
    if path.is_dir() or (is_hub_id(name) and not path.parent.is_dir()):
        return None
    return find_run(name)


def _job_of_run(args: ModelArgs, folder: Path) -> Job:
    spec = load_spec(folder)
    short, tuner, weights = spec.identity[:12], spec.method.tuner, folder / "adapter"
    if tuner in ("adapter", "imported"):
        raise RequestError(f"run {short}: what it tested was not trained by it; name that adapter: adapter=FOLDER")
    if tuner != "none" and not weights.is_dir():
        raise RequestError(f"run {short}: its weights are not in {folder}, so there is no model to serve")
    try:
        backbone = get_backbone(args.backbone or spec.backbone.name)
    except RequestError as error:
        if args.backbone is not None:
            raise
        was = f"its backbone {spec.backbone.name} was a folder"
        raise RequestError(f"run {short}: {was}; say where it lies: backbone=FOLDER") from error
    if backbone.identity() != spec.backbone.weights:
        raise RequestError(
            f"run {short}: backbone {backbone.name} holds other weights than the run's ({spec.backbone.weights[:19]})"
        )
    stored = read_record(folder)["weights"]["adapter"] if is_finished(folder) and tuner != "none" else None
    if stored is not None and stored != folder_digest(weights, "*.safetensors"):
        raise WorkError(f"{weights}: these are not the weights that the run was tested with")
    dtype: Any = spec.dtype if args.dtype == "auto" else args.dtype
    spec = dataclasses.replace(
        spec,
        backbone=dataclasses.replace(spec.backbone, processor=spec.backbone.processor | args.processor),
        dtype=dtype,
        generation=Generation(args.batch_size or spec.generation.batch_size),
    )
    return Job(spec, {}, backbone, folder)


def _about(job: Job) -> dict[str, Any]:
    from medbench.backbones.adapt import read_origin

    spec, weights = job.spec, job.adapter or job.folder / "adapter"
    has_weights = spec.method.tuner != "none"
    run = load_spec(job.folder).identity if (job.folder / "spec.json").exists() else None
    trained_on = spec.trained_tasks if run is not None else read_origin(weights).trained_on
    return {
        "version": medbench.__version__,
        "backbone": spec.backbone.name,
        "backbone_weights": spec.backbone.weights,
        "processor": spec.backbone.processor,
        "method": spec.method.name,
        "run": run,
        "seed": spec.seed if run is not None else None,
        "adapter_weights": folder_digest(weights, "*.safetensors") if has_weights else None,
        "adapter_settings": spec.method.adapter,
        "trained_on": None if trained_on is None else list(trained_on),
        "blind": spec.blind,
        "dtype": spec.dtype,
    }
