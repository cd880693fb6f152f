"""The C sources by themselves: stress under several compilers' eyes, and generated files."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]
# `nox -s native` sets this to stress for longer and to run what takes longest.
SCALE = int(os.environ.get("ORCHESTRA_STRESS", "1"))
SANITIZE = "-O1 -g -fno-sanitize-recover=all -fsanitize="
FLAVOURS = {
    "O2": "-O2",
    "O3": "-O3",
    "asan+ubsan": f"{SANITIZE}address,undefined",
    "tsan": f"{SANITIZE}thread",
}
WARNINGS = "-std=gnu11 -Wall -Wextra -Werror -Wno-error=tsan -Wno-unknown-warning-option"


def build(compiler: str, flags: str, target: Path) -> Path:
    """Build the stress program, or skip where the compiler cannot."""
    sources = [str(CSRC / name) for name in ("stress.c", "executor.c")]
    command = [compiler, *WARNINGS.split(), *flags.split(), "-pthread", f"-I{CSRC}", *sources]
    run = subprocess.run([*command, "-o", str(target)], capture_output=True, text=True, check=False)
    if run.returncode and "-fsanitize" in flags and "cannot find" in run.stderr:
        pytest.skip(f"{compiler} has no run-time library for {flags}")
    assert run.returncode == 0, run.stderr
    return target


def stress(program: Path, items: int, thieves: int) -> subprocess.CompletedProcess[str]:
    """Run the stress program with a random seed."""
    seed = random.SystemRandom().randrange(2**32)
    return subprocess.run(
        [str(program), str(items), str(thieves), str(seed)],
        capture_output=True,
        text=True,
        check=False,
        timeout=50 * SCALE,
    )


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("compiler", COMPILERS or ["none"])
def test_stress(compiler: str, flavour: str, tmp_path: Path) -> None:
    """Deque, parking and executor keep every item under many threads, whoever watches."""
    if compiler == "none":
        pytest.skip("there is no C compiler here; install gcc or clang to run this")
    program = build(compiler, FLAVOURS[flavour], tmp_path / "stress")
    run = stress(program, 200_000 * SCALE, 3)
    assert run.returncode == 0, f"{run.args}\n{run.stdout}{run.stderr}"
    assert run.stdout.count("ok ") == 3


MUTANTS = {
    "no seq_cst fences": "-DWSD_POP_FENCE=memory_order_acq_rel -DWSD_STEAL_FENCE=memory_order_acq_rel",
    "push does not publish": "-DWSD_PUSH_BOTTOM=memory_order_relaxed",
    "steal does not acquire": "-DWSD_STEAL_BOTTOM=memory_order_relaxed",
}


@pytest.mark.skipif(SCALE == 1, reason="nox -s native runs this: ORCHESTRA_STRESS is not set")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_stress_has_teeth(mutant: str, tmp_path: Path) -> None:
    """The stress finds orders that are too weak: the fences by counting, the others by TSan."""
    if "gcc" not in COMPILERS:
        pytest.skip("gcc is not here; install it to run this")
    flags = FLAVOURS["O3" if "fences" in mutant else "tsan"]
    program = build("gcc", f"{flags} {MUTANTS[mutant]}", tmp_path / "stress")
    assert any(stress(program, 1_000_000, 1).returncode for _ in range(10))


def test_generated_files_are_current() -> None:
    """The committed cffi glue and docstrings are what their sources give."""
    run = subprocess.run(
        [sys.executable, "-m", "orchestra._native.generate", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_stale_glue_is_noticed() -> None:
    """A change of the declarations without new glue is found, also with another cffi."""
    from orchestra._native import generate

    committed = (Path(generate.__file__).parent / "_glue.c").read_text(encoding="utf-8")
    assert generate.is_glue_current(committed)
    assert not generate.is_glue_current(committed.replace(generate.digest(), "0" * 16))
    assert not generate.is_glue_current(committed + "int more;\n")
    other = committed.replace("with cffi ", "with cffi 0.", 1)
    assert generate.is_glue_current(other)


@pytest.mark.parametrize("has_compiler", [True, False])
def test_building_succeeds_without_a_compiler(tmp_path: Path, *, has_compiler: bool) -> None:
    """The extension is optional: without a compiler nothing is built, and that is no error."""
    pytest.importorskip("setuptools", reason="setuptools is not here; install it to run this")
    if has_compiler and not COMPILERS:
        pytest.skip("there is no C compiler here; install gcc or clang to run this")
    places = ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    compiler = {} if has_compiler else {"CC": str(tmp_path / "no-such-compiler")}
    run = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", *places],
        cwd=ROOT,
        env=os.environ | compiler,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert bool(list(tmp_path.glob("lib/orchestra/_native/_orchestra*"))) is has_compiler
