"""A weight is decomposed once, and whatever happens to the cache, the factors are right."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Toy, toy_run
from safetensors.torch import load_file, save_file

from medbench.adapters import decomposition_cache as module
from medbench.adapters.decomposition import find_decomposition
from medbench.adapters.decomposition_cache import decomposition_cache, weight_digest
from medbench.adapters.spectrum import SegmentFactors, segment_factors
from medbench.catalog import Settings
from medbench.cli import app
from medbench.errors import RequestError, WorkError

STARTS = [0, 12, 36]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The weights that were decomposed, in order."""
    seen: list[torch.Tensor] = []

    def find(weight: torch.Tensor, spans: list[tuple[int, int]]) -> object:
        seen.append(weight)
        return find_decomposition(weight, spans)

    monkeypatch.setattr(module, "find_decomposition", find)
    return seen


def weight_of(seed: int, rank: int = 48) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(48, rank, generator=generator) @ torch.randn(rank, 64, generator=generator) / 48


def factors_of(seed: int, folder: Path, starts: list[int] = STARTS, max_bytes: int = 2**30) -> SegmentFactors:
    with decomposition_cache(folder, max_bytes):
        return segment_factors(weight_of(seed), starts, 2)


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)


def same(one: SegmentFactors, other: SegmentFactors) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_weight_is_decomposed_once_for_all_segments(tmp_path: Path, computed: list[torch.Tensor]) -> None:
    first = factors_of(0, tmp_path)
    assert same(factors_of(0, tmp_path), first)
    other = factors_of(0, tmp_path, [5, 46])
    assert len(computed) == 1
    assert same(factors_of(0, tmp_path / "empty", [5, 46]), other)
    assert [path.stem for path in entries(tmp_path)] == [weight_digest(weight_of(0))]


@pytest.mark.parametrize("off", [(None, 2**30), ("cache", 0)])
def test_without_a_cache_nothing_is_kept(tmp_path: Path, off: tuple[str | None, int]) -> None:
    folder, size = off
    with decomposition_cache(tmp_path / "outer"), decomposition_cache(folder and tmp_path / folder, size):
        segment_factors(weight_of(0), STARTS, 2)
    segment_factors(weight_of(0), STARTS, 2)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_ends_with_its_block(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="not finite"), decomposition_cache(tmp_path):
        segment_factors(weight_of(0) * torch.inf, STARTS, 2)
    segment_factors(weight_of(0), STARTS, 2)
    assert entries(tmp_path) == []
    factors_of(0, tmp_path)  # the lock was let go
    assert len(entries(tmp_path)) == 1


def test_the_digest_is_of_shape_dtype_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE", 50)  # of 96 bytes and more
    weight = torch.arange(24.0).view(4, 6)
    others = [weight.view(6, 4), weight.double(), weight.bfloat16(), weight.half(), weight.view(torch.int32), -weight]
    ends = [weight.index_fill(1, torch.tensor([column]), 9.5) for column in (0, 5)]
    assert len({weight_digest(w) for w in (weight, *others, *ends)}) == 9
    assert weight_digest(weight.T.contiguous().T) == weight_digest(weight)
    assert weight_digest(torch.nn.Parameter(weight)) == weight_digest(weight)


def damage_truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def damage_foreign(path: Path) -> None:
    save_file({"lora_A": torch.zeros(3)}, path)


def damage_other_shape(path: Path) -> None:
    save_file({"values": torch.ones(4).double(), "short": torch.eye(4).double()}, path)


def damage_other_type(path: Path) -> None:
    save_file({name: rows.float() for name, rows in load_file(path).items()}, path)


def damage_other_weight(path: Path) -> None:
    found, _ = find_decomposition(weight_of(7), [(0, 1)])
    save_file({"values": found.values, "short": found.short}, path)


def damage_not_a_number(path: Path) -> None:
    save_file({name: rows * torch.nan for name, rows in load_file(path).items()}, path)


@pytest.mark.parametrize("damage", [value for name, value in globals().items() if name.startswith("damage_")])
def test_a_damaged_file_is_computed_again_and_replaced(
    tmp_path: Path, computed: list[torch.Tensor], damage: Callable[[Path], None]
) -> None:
    first = factors_of(0, tmp_path)
    damage(entries(tmp_path)[0])
    assert same(factors_of(0, tmp_path), first)
    assert len(computed) == 2
    assert same(factors_of(0, tmp_path), first)
    assert len(computed) == 2


def test_only_the_rows_of_the_segments_are_read(tmp_path: Path, computed: list[torch.Tensor]) -> None:
    first = factors_of(0, tmp_path)
    path = entries(tmp_path)[0]
    stored = load_file(path)
    stored["short"][20:30] = 0
    save_file(stored, path)
    assert same(factors_of(0, tmp_path), first)
    assert len(computed) == 1
    factors_of(0, tmp_path, [24])
    assert len(computed) == 2


def test_an_svd_takes_the_place_of_what_is_not_enough(tmp_path: Path, computed: list[torch.Tensor]) -> None:
    weight = weight_of(0, rank=20)
    for starts in ([0, 12], [0, 40], [0, 12], [0, 40]):
        with decomposition_cache(tmp_path):
            factors = segment_factors(weight, starts, 2)
        expected = torch.linalg.svdvals(weight.double())[torch.tensor(starts)]
        torch.testing.assert_close(factors.s[:, 0], expected)
    assert len(computed) == 2
    assert len(entries(tmp_path)) == 1


def test_the_least_recently_used_entries_go_first(tmp_path: Path, computed: list[torch.Tensor]) -> None:
    mine = tmp_path / "adapter_model.safetensors"
    mine.write_bytes(bytes(100_000))
    names = []
    for seed in range(3):
        factors_of(seed, tmp_path)
        names.append(tmp_path / f"{weight_digest(weight_of(seed))}.safetensors")
        os.utime(names[-1], (seed, seed))
    factors_of(0, tmp_path)  # used again: now 1 is the oldest
    size = names[0].stat().st_size
    factors_of(3, tmp_path, max_bytes=3 * size + 1)
    assert [path.exists() for path in names] == [True, False, True]
    factors_of(4, tmp_path, max_bytes=size)  # the one in use stays
    assert {p.stem for p in entries(tmp_path)} == {weight_digest(weight_of(4)), mine.stem}
    assert len(computed) == 5
    factors_of(0, tmp_path, max_bytes=size)
    assert len(computed) == 6
    factors_of(1, tmp_path, max_bytes=size // 2)  # larger than all there may be
    assert {p.stem for p in entries(tmp_path)} == {weight_digest(weight_of(0)), mine.stem}


def test_what_a_killed_process_left_is_removed_once_it_is_old(tmp_path: Path) -> None:
    name = f".{weight_digest(weight_of(0))}.safetensors"
    for age, end in ((0, "new"), (7200, "old")):
        (tmp_path / f"{name}.{end}.tmp").write_text("half")
        os.utime(tmp_path / f"{name}.{end}.tmp", (time.time() - age,) * 2)
    factors_of(1, tmp_path)
    assert [path.name for path in tmp_path.glob(".*.tmp")] == [f"{name}.new.tmp"]


def test_lock_files_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "weight_digest", lambda w: f"{int(w[0, 0]):064x}")
    for number in range(0, 600, 60):
        with decomposition_cache(tmp_path):
            segment_factors(torch.eye(4) * number, [0], 1)
    assert len(entries(tmp_path)) == 10
    assert [path.name for path in (tmp_path / "locks").iterdir()] == ["00"]


def test_a_full_disk_is_said_once_and_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = [factors_of(seed, tmp_path / "other") for seed in range(3)]

    def save(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(bytes(1000))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "save_file", save)
    with decomposition_cache(tmp_path / "full"):
        found = [segment_factors(weight_of(seed), STARTS, 2) for seed in range(3)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close((one.u * one.s.unsqueeze(1)) @ one.vh, (other.u * other.s.unsqueeze(1)) @ other.vh)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "No space left on device" in said
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["locks"]


@pytest.mark.parametrize("what", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_said_once(
    tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    with decomposition_cache(tmp_path / what):
        for seed in range(2):
            segment_factors(weight_of(seed), STARTS, 2)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(tmp_path / what) in said


def test_a_folder_that_cannot_be_written_is_still_read(
    tmp_path: Path, computed: list[torch.Tensor], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = factors_of(0, tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(module.FileLock, "acquire", refuse)
    monkeypatch.setattr(Path, "touch", refuse)
    with decomposition_cache(tmp_path):
        assert same(segment_factors(weight_of(0), STARTS, 2), first)
        assert capsys.readouterr().err == ""
        segment_factors(weight_of(1), STARTS, 2)
        assert same(segment_factors(weight_of(0), STARTS, 2), first)
    assert capsys.readouterr().err.count("\n") == 1
    assert len(entries(tmp_path)) == 1


def test_an_entry_that_goes_while_it_is_read_is_computed_again(
    tmp_path: Path, computed: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = factors_of(0, tmp_path)
    path, opened = entries(tmp_path)[0], module.safe_open

    def gone(*arguments: object) -> object:
        path.unlink(missing_ok=True)
        return opened(*arguments)

    monkeypatch.setattr(module, "safe_open", gone)
    assert same(factors_of(0, tmp_path), first)
    assert len(computed) == 2


PROCESS = """
import sys, time
from pathlib import Path
import torch
from medbench.adapters import decomposition_cache as module
from medbench.adapters.spectrum import segment_factors

folder, find = Path(sys.argv[1]), module.find_decomposition

def slow(weight, spans):
    with (folder / "computed").open("a") as file:
        file.write("x")
    time.sleep(1)  # long enough for the other to come and find nothing
    return find(weight, spans)

module.find_decomposition = slow
(folder / f"ready{sys.argv[2]}").touch()
while len(list(folder.glob("ready*"))) < 2:
    time.sleep(0.01)
weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(0))
with module.decomposition_cache(folder / "cache"):
    print(segment_factors(weight, [0, 12], 2).u.sum().item())
"""


@pytest.mark.slow
def test_of_two_processes_one_computes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROCESS, str(tmp_path)]
    both = [subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, text=True) for n in range(2)]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == said[1]
    assert (tmp_path / "computed").read_text() == "x"


def test_settings_say_where_and_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert Settings.read(tmp_path).svd_cache == tmp_path / "xdg" / "medbench" / "svd"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Settings().svd_cache == tmp_path / "home" / ".cache" / "medbench" / "svd"
    file = tmp_path / "medbench.toml"
    file.write_text('cache = "kept"\ncache_gb = 1.5')
    settings = Settings.read(tmp_path)
    assert (settings.svd_cache, settings.cache_gb) == (tmp_path / "kept" / "svd", 1.5)
    file.write_text("cache_gb = 0")
    assert Settings.read(tmp_path).svd_cache is None


@pytest.mark.parametrize("text", ["cache = 3", 'cache_gb = "20"', "cache_gb = -1", "cache_gb = inf", "cache_gb = true"])
def test_wrong_settings_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "medbench.toml").write_text(text)
    with pytest.raises(RequestError, match=rf"medbench.toml: {text.split()[0]}: should be"):
        Settings.read(tmp_path)


@pytest.mark.parametrize(("text", "expected"), [('cache = "kept"\ncache_gb = 2', 2 * 2**30), ("cache_gb = 0", None)])
def test_a_run_attaches_its_adapter_within_the_cache_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: Toy, tiny: Path, text: str, expected: int | None
) -> None:
    seen = []

    def attach(*_: object) -> None:
        seen.append(module._active.get())
        raise WorkError("enough")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("medbench.steps.attach", attach)
    (tmp_path / "medbench.toml").write_text(text)
    with pytest.raises(WorkError, match="enough"):
        app([str(word) for word in toy_run(toy, tiny, "--method", "spectral_moe")], standalone_mode=False)
    assert seen == [expected and module.DecompositionCache(tmp_path / "kept" / "svd", expected)]
    assert module._active.get() is None
