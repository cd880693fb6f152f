"""The sessions of development; ``.ci/run`` is what must pass, these are its parts and more."""

from __future__ import annotations

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint", "typing", "tests", "docs"]

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)


def install(session: nox.Session, *groups: str) -> None:
    """Install the package with every extra, and dependency groups.

    Args:
        session: The session.
        groups: The groups.
    """
    session.install("-e", ".[all]", *nox.project.dependency_groups(PROJECT, *groups))


@nox.session
def lint(session: nox.Session) -> None:
    """Style and format."""
    session.install(*nox.project.dependency_groups(PROJECT, "lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The tests, on every supported Python that is there."""
    install(session, "tests")
    session.run("pytest", *session.posargs)


@nox.session
def tests_asyncio_only(session: nox.Session) -> None:
    """The tests of someone who has no trio."""
    wanted = nox.project.dependency_groups(PROJECT, "tests")
    session.install("-e", ".[all]", *(r for r in wanted if not r.startswith("trio")))
    # The documentation shows trio too.
    session.run("pytest", "-k", "not trio", "--ignore=tests/test_docs.py", *session.posargs)


@nox.session
def typing(session: nox.Session) -> None:
    """Types of everything with mypy, of the public API with pyright."""
    install(session, "dev")
    session.run("mypy")
    session.run("pyright", "--verifytypes", "orchestra", "--ignoreexternal")


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation and its examples; a warning is an error."""
    install(session, "docs")
    strict = ("-q", "-W", "-n", "--keep-going")
    session.run("sphinx-build", *strict, "-b", "html", "docs", "docs/_build/html")
    session.run("sphinx-build", *strict, "-b", "doctest", "docs", "docs/_build/doctest")


@nox.session
def native(session: nox.Session) -> None:
    """The C sources: generated files, and stress for longer under sanitizers and with mutants."""
    install(session, "tests")
    session.run("python", "-m", "orchestra._native.generate", "--check")
    session.run("pytest", "tests/stealing", *session.posargs, env={"ORCHESTRA_STRESS": "20"})


@nox.session
def coverage(session: nox.Session) -> None:
    """Which lines and branches the tests reach."""
    install(session, "tests")
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *session.posargs)
    session.run("coverage", "combine")
    session.run("coverage", "report")


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmarks: prints the ratios and writes those of the suite into the documentation."""
    install(session, "tests", "bench")
    session.run("python", "-m", "benchmarks", "--save", "docs/benchmarks", *session.posargs)
    if not session.posargs:
        scripts = (
            "import_time",
            "http_calls",
            "mission_overhead",
            "evidence",
            "turn_latency",
            "prewarm",
            "stealing",
        )
        for script in scripts:
            # 1 says that a bound was missed, which the printed figures show too.
            session.run("python", "-m", f"benchmarks.{script}", success_codes=[0, 1])


@nox.session
def news(session: nox.Session) -> None:
    """The changelog of the next release, as a draft."""
    session.install(*nox.project.dependency_groups(PROJECT, "docs"))
    session.run("towncrier", "build", "--draft", "--version", "next")
