"""Scoring: pure functions from stored predictions to figures, apart from generation, so it can be run again.

`normalise` and `profiles` turn texts into scores, `vqa` makes the per-item table, `stats` the figures with
their intervals. Importing this package is cheap (standard library only).
"""

from medbench.scoring.pairs import score_pairs
from medbench.scoring.profiles import KEYS, Profile, Scores, get_profile, profile_names

__all__ = ["KEYS", "Profile", "Scores", "get_profile", "profile_names", "score_pairs"]
