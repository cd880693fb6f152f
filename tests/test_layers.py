from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen

SOURCE = Path(__file__).parents[1] / "src"

# Which layer a module belongs to: the longest prefix counts. A module imports from its own layer
# and from lower ones.
LAYERS = {
    "orchestra": 0,
    "orchestra._core": 1,
    "orchestra._admission": 2,
    "orchestra._ending": 2,
    "orchestra._children": 2,
    "orchestra._functions": 2,
    "orchestra._handlers": 2,
    "orchestra._lane": 2,
    "orchestra._lease": 2,
    "orchestra._listeners": 2,
    "orchestra._spending": 2,
    "orchestra._signals": 2,
    "orchestra._waiting": 2,
    "orchestra._groups": 2,
    "orchestra._native": 1,
    "orchestra._scheduler": 2,
    "orchestra.background": 2,
    "orchestra.breaker": 2,
    "orchestra.budgets": 2,
    "orchestra.bulkhead": 2,
    "orchestra.concurrency": 2,
    "orchestra.ownership": 2,
    "orchestra.hooks": 2,
    "orchestra.pipeline": 2,
    "orchestra.pools": 2,
    "orchestra.pressure": 2,
    "orchestra.processes": 2,
    "orchestra.redaction": 2,
    "orchestra.retry": 2,
    "orchestra.scopes": 2,
    "orchestra.shutdown": 2,
    "orchestra.stealing": 2,
    "orchestra.workers": 2,
    "orchestra.sessions": 3,
    "orchestra.stores": 3,
    "orchestra.tools": 3,
    "orchestra.opencode": 4,
}

# What the mission and its backend may import: `orchestra` itself and these, by public names only.
PUBLIC = {"orchestra", "orchestra.abc", "orchestra.errors", "orchestra.events"}

# Each extra and the only places that may import it.
EXTRAS = {
    "httptools": ("orchestra.opencode.client",),
    "msgspec": ("orchestra.opencode.client", "orchestra.stores.codecs"),
    "rich": ("orchestra.opencode.cli", "orchestra.opencode.progress"),
    "h11": ("orchestra.testing",),
    "ast_grep_py": ("orchestra.tools.matcher",),
}
LOOPS = {"asyncio", "trio", "curio", "uvloop"}
NATIVE = "orchestra._waiting"  # the one home of native waiters
SANS_IO = LOOPS | {"anyio", "socket", "subprocess", "threading", "time", "random", "os", "pathlib"}


@frozen
class Import:
    """One imported module, with the names that are taken from it."""

    module: str
    names: tuple[str, ...]
    line: int

    @property
    def top(self) -> str:
        """The distribution's package."""
        return self.module.partition(".")[0]


def module_name(path: Path) -> str:
    """The dotted name of a source file."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


def imports(name: str) -> Iterator[Import]:
    """Every import of a module, wherever it stands."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, (), node.lineno)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno} is a relative import"
            assert node.module is not None
            names = tuple(alias.name for alias in node.names)
            # `from package import module` is an import of that module.
            inner = [n for n in names if f"{node.module}.{n}" in MODULES]
            for module in inner:
                yield Import(f"{node.module}.{module}", (), node.lineno)
            if rest := tuple(n for n in names if n not in inner):
                yield Import(node.module, rest, node.lineno)


def is_within(name: str, package: str) -> bool:
    """Whether a module is the package or in it."""
    return name == package or name.startswith(f"{package}.")


def layer(name: str) -> int:
    """The layer of a module of ours."""
    return LAYERS[max((p for p in LAYERS if is_within(name, p)), key=len)]


def ours(name: str) -> list[Import]:
    """The imports from this package."""
    return [found for found in imports(name) if found.top == "orchestra"]


# The kit stands beside the layers: it may import all of them, and none may import it.
# The package's own namespace names everything, and imports it on first use.
LAYERED = [
    name for name in MODULES if name != "orchestra" and not is_within(name, "orchestra.testing")
]


@pytest.mark.parametrize("name", LAYERED)
def test_imports_go_downward(name: str) -> None:
    """A module imports from its own layer and from lower ones, and never from the test kit."""
    for found in ours(name):
        assert not is_within(found.module, "orchestra.testing"), f"{name}:{found.line}"
        if found.module != "orchestra":  # the namespace: what is behind a name is checked below
            assert layer(found.module) <= layer(name), f"{name}:{found.line} {found.module}"


@pytest.mark.parametrize("name", [n for n in MODULES if is_within(n, "orchestra.opencode")])
def test_the_mission_uses_public_names_only(name: str) -> None:
    """The top layer is built from nothing but what every user can import."""
    for found in ours(name):
        if is_within(found.module, "orchestra.opencode"):
            continue
        place = f"{name}:{found.line} {found.module} {found.names}"
        assert found.module in PUBLIC, place
        public = importlib.import_module(found.module).__all__
        assert set(found.names) <= set(public), place


@pytest.mark.parametrize(
    "name", [n for n in MODULES if not is_within(n, "orchestra.testing") and n != NATIVE]
)
def test_only_the_kit_knows_an_event_loop(name: str) -> None:
    """Only the test kit and the home of native waiters import a loop: the rest goes through anyio."""
    assert not [found for found in imports(name) if found.top in LOOPS]


PURE = [
    name
    for name in MODULES
    if is_within(name, "orchestra._core") or name == "orchestra.opencode.mission.machine"
]


@pytest.mark.parametrize("name", PURE)
def test_pure_cores_know_no_clock_and_no_io(name: str) -> None:
    """A pure core imports no loop, clock, randomness, thread, process, file or socket."""
    assert not [found for found in imports(name) if found.top in SANS_IO]


@pytest.mark.parametrize("name", [n for n in MODULES if not is_within(n, "orchestra._native")])
def test_one_module_knows_the_c_boundary(name: str) -> None:
    """Only `orchestra.stealing` imports the extension's package, and nothing imports cffi."""
    for found in imports(name):
        is_boundary = is_within(found.module, "orchestra._native")
        assert not is_boundary or name == "orchestra.stealing", f"{name}:{found.line}"
        assert found.top != "cffi", f"{name}:{found.line}"


@pytest.mark.parametrize("name", list(MODULES))
def test_extras_stay_at_home(name: str) -> None:
    """An optional dependency is imported only by the part that it is for."""
    for found in imports(name):
        homes = EXTRAS.get(found.top, (name,))
        assert any(is_within(name, home) for home in homes), f"{name}:{found.line} {found.module}"


@pytest.mark.parametrize("name", list(MODULES))
def test_files_are_rooms(name: str) -> None:
    """No file is longer than 600 lines."""
    assert len(MODULES[name].read_text(encoding="utf-8").splitlines()) <= 600
