"""Files are whole or not there, equal values are equal bytes, and a run folder has one holder at a time."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medbench.errors import WorkError
from medbench.files import (
    canonical_json,
    digest,
    folder_digest,
    publish_folder,
    read_json,
    run_lock,
    write_atomic,
    write_json,
    write_parquet,
    write_text,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=5), st.randoms())
def test_canonical_json_does_not_know_the_order_of_keys(value: dict[str, object], random: object) -> None:
    shuffled = list(value.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    text = canonical_json(value)
    assert canonical_json(dict(shuffled)) == text
    assert json.loads(text) == value
    assert digest(value) == hashlib.sha256(text.encode()).hexdigest()


def test_canonical_json_golden() -> None:
    assert canonical_json({"b": [1, 2.5, None], "a": "é"}) == '{"a":"\\u00e9","b":[1,2.5,null]}'
    # RFC 6234's sha256 of the two bytes "{}"
    assert digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_json_are_refused(value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json({"x": value})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", [value])
    assert list(tmp_path.iterdir()) == []


def test_folder_digest_sees_names_and_contents(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("1")
    (tmp_path / "b" / "x").rename(tmp_path / "b" / "y")
    (tmp_path / "c" / "x").write_text("2")
    digests = {folder_digest(tmp_path / name) for name in ("a", "b", "c")}
    assert len(digests) == 3
    (tmp_path / "a" / "log").write_text("not matched")
    assert folder_digest(tmp_path / "a", "x*") in digests


@pytest.mark.parametrize("old", [None, "the old content"])
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), WorkError),
        (RuntimeError("the writer broke"), RuntimeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_failing_write_leaves_what_was_there(
    tmp_path: Path, old: str | None, error: BaseException, raised: type[BaseException]
) -> None:
    path = tmp_path / "record.json"
    if old is not None:
        path.write_text(old)

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    with pytest.raises(raised) as caught:
        write_atomic(path, write)
    if raised is WorkError:
        assert str(path) in str(caught.value)
        assert "No space left on device" in str(caught.value)
    left = {p.name: p.read_text() for p in tmp_path.iterdir()}
    assert left == ({} if old is None else {"record.json": old})


def test_a_write_into_something_that_is_no_folder_is_a_work_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(WorkError, match="cannot write"):
        write_text(tmp_path / "file" / "record.json", "{}")
    with pytest.raises(WorkError, match="cannot make the run folder"), run_lock(tmp_path / "file" / "run"):
        pass


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    """While the new content is written, the path still holds the old one."""
    path = tmp_path / "x"
    write_text(path, "old")

    def write(temporary: Path) -> None:
        temporary.write_text("ne")
        assert path.read_text() == "old"
        temporary.write_text("new")

    write_atomic(path, write)
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_text_json_and_parquet_come_back(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "t", "a\r\né")
    assert (tmp_path / "deep" / "t").read_bytes() == "a\r\né".encode()
    write_json(tmp_path / "j", {"b": 1, "a": "é"})
    assert read_json(tmp_path / "j") == {"b": 1, "a": "é"}
    table = pd.DataFrame({"id": ["1", "2"], "p": [0.25, None]})
    write_parquet(tmp_path / "p", table)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "p"), table)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", None])
def test_a_broken_json_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "record.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(WorkError, match=r"record\.json: not readable as JSON"):
        read_json(path)


def test_publishing_a_folder_replaces_the_older_one(tmp_path: Path) -> None:
    for name in ("new", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    publish_folder(tmp_path / "new", tmp_path / "target")
    assert [p.name for p in tmp_path.iterdir()] == ["target"]
    assert [p.name for p in (tmp_path / "target").iterdir()] == ["new"]


HOLD = """
import sys, time
from pathlib import Path
from medbench.files import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_process_is_refused_until_the_first_dies(tmp_path: Path) -> None:
    folder = tmp_path / "0123456789abcdef"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(WorkError) as refused, run_lock(folder):
                pass
            for word in ("0123456789ab", f"process {holder.pid} ", socket.gethostname()):
                assert word in str(refused.value)
            with pytest.raises(WorkError, match=f"process {holder.pid} "), run_lock(folder):
                pass  # being refused once does not take the note away
        finally:
            holder.send_signal(signal.SIGKILL)
    assert (folder / ".lock.holder").exists()  # it died without tidying
    with run_lock(folder), pytest.raises(WorkError, match=f"process {os.getpid()} "), run_lock(folder):
        pass
    with run_lock(folder):
        pass


def test_the_lock_is_let_go_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path):
        raise ZeroDivisionError
    assert not (tmp_path / ".lock.holder").exists()
    with run_lock(tmp_path):
        pass
