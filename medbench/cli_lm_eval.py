"""`medbench lm-eval`: lm-evaluation-harness with our models and tasks. Parse, call, print."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from medbench.cli_options import DataRoot, Json, print_json, split_names
from medbench.errors import RequestError
from medbench.progress import speaks


def lm_eval(
    tasks: Annotated[str, typer.Option(help="What to test: names, groups, wildcards or cards, comma-separated.")],
    model_args: Annotated[
        str,
        typer.Option(
            "--model_args",
            "--model-args",
            help="backbone=, adapter= (run folder or its hash's first letters, adapter folder, hub id), dtype=, "
            "batch_size=, device=, min_pixels=, max_pixels=; comma-separated.",
        ),
    ] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="Test items a task, the first ones.")] = None,
    likelihood: Annotated[
        bool,
        typer.Option(help="Ask closed questions by the likelihood of their candidate answers, not by generation."),
    ] = False,
    gen_kwargs: Annotated[
        str | None,
        typer.Option("--gen_kwargs", "--gen-kwargs", help="Over the cards' generation settings: max_gen_toks=64, ..."),
    ] = None,
    use_cache: Annotated[
        Path | None,
        typer.Option(
            "--use_cache", "--use-cache", help="Keep answers beside this path; each model has a file of its own."
        ),
    ] = None,
    output_path: Annotated[
        Path | None,
        typer.Option("--output_path", "--output-path", help="Write lm-eval's results there: a folder, or NAME.json."),
    ] = None,
    log_samples: Annotated[
        bool, typer.Option("--log_samples", "--log-samples", help="With --output_path: questions and answers, too.")
    ] = False,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Run lm-evaluation-harness with a model of ours on our tasks.

    Answers and figures are those of `run`; standard errors are lm-eval's, which take every question for independent.
    """
    if not speaks():
        return  # one process does it
    if find_spec("lm_eval") is None:
        raise RequestError('lm-eval is not installed; get it with: pip install "medbench[lm-eval]"')
    if log_samples and output_path is None:
        raise RequestError("--log_samples: samples are written to files; add --output_path")
    import logging

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # what it warns of is about its own command line
    from medbench.harness.evaluate import configs, evaluate
    from medbench.harness.serving import ModelArgs

    args = ModelArgs.parse_text(model_args)
    found = configs(split_names(tasks), data_root, likelihood, limit)
    from medbench.harness.model import MedbenchLM

    lm = MedbenchLM(args)
    results = evaluate(
        lm,
        found,
        model_args=model_args,
        limit=limit,
        gen_kwargs=gen_kwargs,
        use_cache=use_cache,
        output_path=output_path,
        log_samples=log_samples,
    )
    if as_json:
        print_json(results)
        return
    from lm_eval.utils import make_table

    about = lm.served.about
    where = f"run {about['run'][:12]}, " if about["run"] else ""
    print(f"{about['backbone']}, {about['method']}, {where}{about['dtype']}, identity {about['identity']}")
    print(make_table(results))
