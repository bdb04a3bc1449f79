# Named by the cards' `!function`; only lm-eval imports it. The code lives in the package.
from medbench.harness import dataset, process_results

__all__ = ["dataset", "process_results"]
