"""The lm-evaluation-harness surface: our tasks in lm-eval, and our models.

A folder of our cards is a valid `--include_path`; what their `!function` fields name is here (`dataset`,
`process_results`). Importing this package also registers the model `medbench` where lm-eval is installed:

    import lm_eval
    from lm_eval.tasks import TaskManager
    import medbench.harness

    lm_eval.simple_evaluate(
        model="medbench",
        model_args="adapter=results/runs/0a1b,dtype=float32",
        tasks=["phantom_yesno"],
        task_manager=TaskManager(include_path="tasks", include_defaults=False),
    )

`medbench lm-eval` does the same on the command line.
"""

from importlib.util import find_spec

from medbench.harness.scoring import process_results
from medbench.harness.tasks import dataset, task_config

__all__ = ["dataset", "process_results", "task_config"]

if find_spec("lm_eval") is not None:
    from medbench.harness.model import MedbenchLM as MedbenchLM

    __all__ += ["MedbenchLM"]
