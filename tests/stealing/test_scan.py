from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestra import _native, scan_files
from orchestra._native import _scan

Scan = Callable[..., list[int]]


@pytest.fixture(params=["native", "fallback"])
def scan(request: pytest.FixtureRequest) -> Scan:
    """The search in C, and the same in Python."""
    if request.param == "fallback":
        return _scan.scan_files_fallback
    if _native.IMPLEMENTATION != "native":
        pytest.skip(f"the native extension is not active: {_native.REASON}")
    return _scan.scan_files_native


def write(directory: Path, contents: Sequence[bytes]) -> list[Path]:
    """One file for each content."""
    paths = [directory / f"file {number}" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_each_file_has_a_bit_for_each_needle(scan: Scan, tmp_path: Path, threads: int) -> None:
    """Bit k of a result tells whether needle k is in the file, as bytes.__contains__ would."""
    choice = random.Random(4)
    contents = [bytes(choice.choices(b"ab\0", k=choice.randrange(60))) for _ in range(300)]
    needles = [b"a", b"ab", b"\0", b"aba", b"bbbbb"]
    expected = [
        sum((needle in content) << bit for bit, needle in enumerate(needles))
        for content in contents
    ]
    assert scan(write(tmp_path, contents), needles, threads=threads) == expected


def test_needle_across_two_reads_is_found(scan: Scan, tmp_path: Path) -> None:
    """Files are read in pieces of 256 KiB; a needle may lie across a border, or be longer."""
    window = 256 * 1024
    long = bytes(random.Random(4).randbytes(window + 1000))
    contents = [b"." * (window - cut) + b"SECRET" + b"." * 10 for cut in range(8)]
    contents += [b"x" * 100 + long, long[:-1], b"." * (3 * window) + b"SECRET"]
    found = scan(write(tmp_path, contents), [b"SECRET", long], threads=2)
    assert found == [1] * 8 + [2, 0, 1]


def test_what_cannot_be_read_has_its_errno(scan: Scan, tmp_path: Path) -> None:
    """Missing files, directories and FIFOs are told, and stop neither the others nor the scan."""
    good = tmp_path / "good"
    good.write_bytes(b"TODO")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    paths = [tmp_path / "missing", good, tmp_path, fifo, str(good)]
    expected = [-errno.ENOENT, 1, -errno.EISDIR, -errno.EINVAL, 1]
    assert scan(paths, [b"TODO"], threads=2) == expected


def test_nothing_to_do(scan: Scan, tmp_path: Path) -> None:
    """Without files or needles there is nothing to find."""
    assert scan([], [b"x"], threads=2) == []
    assert scan(write(tmp_path, [b"x"]), [], threads=2) == [0]


@pytest.mark.parametrize(
    ("paths", "needles", "threads", "error"),
    [
        (["x"], [b""], 1, ValueError),
        (["x"], [b"x"] * 63, 1, ValueError),
        (["x"], ["x"], 1, TypeError),
        (["x"], [b"x"], 0, ValueError),
        (["x"], [b"x"], 65, ValueError),
        (["x\0y"], [b"x"], 1, ValueError),
        ([7], [b"x"], 1, TypeError),
    ],
)
def test_wrong_arguments_are_refused(
    scan: Scan, paths: Any, needles: Any, threads: int, error: type[Exception]
) -> None:
    """Bad arguments raise before a file is opened."""
    with pytest.raises(error):
        scan(paths, needles, threads=threads)


def test_public_function_takes_any_iterables(tmp_path: Path) -> None:
    """scan_files() takes iterables of paths and needles, and chooses the threads itself."""
    paths = write(tmp_path, [b"a", b"b", b"ab"] + [b"-" * 10] * 60)
    found = scan_files(iter(paths), iter([b"a", b"b"]))
    assert found == [1, 2, 3] + [0] * 60


def test_limits_are_those_of_the_c_source() -> None:
    """Both implementations have the same limits."""
    if _native.IMPLEMENTATION != "native":
        pytest.skip(f"the native extension is not active: {_native.REASON}")
    from orchestra._native._loader import lib

    assert (lib.EXE_MAX_NEEDLES, lib.EXE_MAX_THREADS) == (_scan.MAX_NEEDLES, _scan.MAX_THREADS)
