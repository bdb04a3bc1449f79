"""Finds tasks, methods, backbones and grids by name.

Looked up in this order, the first hit wins: a path to a YAML file, the user's folders (`medbench.toml`), the
entry point groups `medbench.tasks` and `medbench.methods` (a package with YAML files; for methods also a class, see
`medbench.tuners`), and what this package carries. Reading names imports neither torch nor transformers.
"""

from __future__ import annotations

import fnmatch
import math
import os
import tomllib
from dataclasses import dataclass, field, fields
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import yaml

from medbench.data.card import Card
from medbench.data.group import Group
from medbench.errors import RequestError, did_you_mean
from medbench.grid import Grid
from medbench.methods import Method
from medbench.tuners import third_party

Kind = Literal["tasks", "methods", "backbones"]
_FOLDERS: dict[str, str] = {"tasks": "tasks", "methods": "baselines"}
CONFIG_NAME = "medbench.toml"


def packaged(name: str) -> Path:
    """A data folder that travels in the wheel (`tasks`, `baselines`, `results/paper`).

    In an installed wheel it lies inside the package, in a checkout beside it.
    """
    package = Path(__file__).parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def _entry_folder(entry: EntryPoint) -> Path:
    """The folder of the package that an entry point names; only its parents are imported."""
    try:
        spec = find_spec(entry.value)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise RequestError(f"entry point {entry.name} of {entry.group}: {entry.value!r} is not a package with cards")
    return Path(next(iter(spec.submodule_search_locations)))


class _Loader(yaml.SafeLoader):
    """YAML without code: `!function x.y` (which lm-eval executes) is read as the text `x.y`."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))  # type: ignore[arg-type]


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping; nothing in it is executed.

    Raises:
        RequestError: the file is missing, is not YAML or is not a mapping; the message names file and line.
    """
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise RequestError(f"{path}: is no file")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: cannot be read ({error})") from error
    except RecursionError as error:
        raise RequestError(f"{path}: not YAML that can be read (nested too deeply)") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "not valid"
        raise RequestError(f"{path}{where}: not YAML ({reason})") from error
    except ValueError as error:  # a date or number that YAML's own constructors refuse (2024-13-45)
        raise RequestError(f"{path}: not YAML ({error})") from error
    if not isinstance(content, dict):
        raise RequestError(f"{path}: expected a mapping of fields, found {type(content).__name__}")
    return content


@dataclass(frozen=True)
class Settings:
    """What `medbench.toml` may say: where data lies, the user's own folders of cards and recipes, and the cache.

    Attributes:
        data_root: where local data lies.
        tasks: folders of cards.
        methods: folders of recipes.
        cache: where what takes long to compute is kept; None is `medbench` in the user's cache folder.
        cache_gb: what that may take (GiB); 0 keeps nothing.
    """

    data_root: Path | None = None
    tasks: tuple[Path, ...] = ()
    methods: tuple[Path, ...] = ()
    cache: Path | None = None
    cache_gb: float = 20.0

    @classmethod
    def read(cls, folder: Path) -> Settings:
        """Reads `medbench.toml` in `folder`; without one, the defaults. Paths are relative to the file."""
        path = folder / CONFIG_NAME
        if not path.exists():
            return cls()
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RequestError(f"{path}: not TOML ({error})") from error
        for key in content:
            if key not in (known := [f.name for f in fields(cls)]):
                raise RequestError(f"{path}: unknown setting {key!r}; {did_you_mean(key, known)}")
        for key in ("data_root", "cache"):
            if not isinstance(content.get(key), str | None):
                raise RequestError(f"{path}: {key}: should be text, is {content[key]!r}")
        size = content.get("cache_gb", cls.cache_gb)
        if isinstance(size, bool) or not isinstance(size, int | float) or not 0 <= size < math.inf:
            raise RequestError(f"{path}: cache_gb: should be a number of GiB, 0 for no cache, is {size!r}")
        root, cache = content.get("data_root"), content.get("cache")
        for key in ("tasks", "methods"):
            folders = content.get(key, [])
            if not isinstance(folders, list) or not all(isinstance(p, str) for p in folders):
                raise RequestError(f'{path}: {key}: should be a list of folders like ["cards"], is {folders!r}')
        return cls(
            data_root=folder / root if root else None,
            tasks=tuple(folder / p for p in content.get("tasks", ())),
            methods=tuple(folder / p for p in content.get("methods", ())),
            cache=folder / cache if cache else None,
            cache_gb=float(size),
        )

    @property
    def svd_cache(self) -> Path | None:
        """The folder of the weights' decompositions; None where they are not kept."""
        return self._cached("svd")

    @property
    def embedding_cache(self) -> Path | None:
        """The folder of frozen towers' embeddings; None where they are not kept."""
        return self._cached("embeddings")

    def _cached(self, what: str) -> Path | None:
        base = self.cache or _user_cache()
        return base / what if base and self.cache_gb else None


def _user_cache() -> Path | None:
    """`medbench` in the user's cache folder (XDG base directories); None for a user without a home."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (base if base.is_absolute() else Path.home() / ".cache") / "medbench"
    except RuntimeError:
        return None


@dataclass
class Catalog:
    """Everything that has a name. `Catalog()` reads `medbench.toml` of the working folder."""

    settings: Settings = field(default_factory=lambda: Settings.read(Path.cwd()))
    # Looking through everything that is installed takes a while, so it is done once.
    _known: dict[Kind, list[Path]] = field(default_factory=dict, init=False, repr=False)

    def paths(self, kind: Kind) -> dict[str, Path]:
        """Name -> YAML file, for tasks or methods."""
        found: dict[str, Path] = {}
        for folder in self._folders(kind):
            if not folder.is_dir():
                raise RequestError(f"{kind} folder {folder} does not exist (named in {CONFIG_NAME})")
            for path in sorted(folder.glob("*.yaml")):
                found.setdefault(path.stem, path)
        return found

    def groups(self) -> dict[str, Path]:
        """Name -> YAML file of the groups of tasks: those of the folder `groups` in each folder of tasks."""
        found: dict[str, Path] = {}
        for folder in self._folders("tasks"):
            for path in sorted(folder.glob("groups/*.yaml")):
                found.setdefault(path.stem, path)
        return found

    def grids(self) -> dict[str, Path]:
        """Name -> YAML file of the grids: those of the folder `grids` in each folder of methods."""
        found: dict[str, Path] = {}
        for folder in self._folders("methods"):
            for path in sorted(folder.glob("grids/*.yaml")):
                found.setdefault(path.stem, path)
        return found

    def _folders(self, kind: Kind) -> list[Path]:
        if kind not in self._known:
            entries = [entry for entry in entry_points(group=f"medbench.{kind}") if not entry.attr]  # else a class
            own: tuple[Path, ...] = getattr(self.settings, kind)
            self._known[kind] = [*own, *map(_entry_folder, entries), packaged(_FOLDERS[kind])]
        return self._known[kind]

    def task(self, name: str) -> Card:
        """The card of a task, by name or path."""
        path = self._find("tasks", name)
        return Card.parse(read_yaml(path), path)

    def method_names(self) -> list[str]:
        """The methods: recipes, and the tuners of installed packages that are a method of their own."""
        return sorted({*self.paths("methods"), *third_party()})

    def method(self, name: str) -> Method:
        """The recipe of a method, by name or path."""
        if name not in self.paths("methods") and name in third_party():
            return Method.of_tuner(name, third_party()[name])
        path = self._find("methods", name)
        return Method.parse(read_yaml(path), path)

    def group(self, name: str) -> Group:
        """A group of tasks, by name."""
        path = self.groups()[name]
        return Group.parse(read_yaml(path), path)

    def grid(self, name: str) -> Grid:
        """A grid, by name or path."""
        known = self.grids()
        if name not in known and not name.endswith((".yaml", ".yml")):
            raise RequestError(f"unknown grid {name!r}; {did_you_mean(name, known)}, or the path of a YAML file")
        path = known.get(name, Path(name))
        return Grid.parse(read_yaml(path), path)

    def task_names(self, pattern: str) -> list[str]:
        """The tasks that a name, a group or a wildcard (`slake*`, in alphabetical order) stands for.

        Raises:
            RequestError: a wildcard matches nothing, or a group has members without a card: they are named, since a
                group without them would be another group.
        """
        if pattern.endswith((".yaml", ".yml")):
            return [pattern]
        if not any(sign in pattern for sign in "*?["):
            known = self.paths("tasks")
            if pattern in known or pattern not in self.groups():
                return [pattern]
            members = self.group(pattern).task
            missing = [name for name in members if name not in known]
            if missing:
                rest = ",".join(name for name in members if name in known) or "none"
                raise RequestError(
                    f"group {pattern}: {len(missing)} of its {len(members)} tasks have no card yet: "
                    f"{', '.join(missing)}; those that have one: {rest}"
                )
            return list(members)
        names = sorted(fnmatch.filter(self.paths("tasks"), pattern))
        if not names:
            raise RequestError(f"no task matches {pattern!r}; {did_you_mean(pattern, self.paths('tasks'))}")
        return names

    def _find(self, kind: Kind, name: str) -> Path:
        if name.endswith((".yaml", ".yml")):
            return Path(name)
        paths = self.paths(kind)
        if name not in paths:
            groups = self.groups() if kind == "tasks" else {}
            if name in groups:
                raise RequestError(f"{name} is a group of tasks; name one: {', '.join(self.group(name).task)}")
            others = third_party() if kind == "methods" else {}
            raise RequestError(f"unknown {kind[:-1]} {name!r}; {did_you_mean(name, [*paths, *groups, *others])}")
        return paths[name]
