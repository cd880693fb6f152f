from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
LAZY = ["orchestra", "orchestra.opencode", "orchestra.testing"]
PUBLIC = [*LAZY, "orchestra.abc", "orchestra.errors", "orchestra.events"]
EXTRAS = {"httptools", "msgspec", "rich", "h11", "trio", "ast_grep_py"}


def homes(module: ModuleType) -> dict[str, str]:
    """The table of a lazy module: name to the module that defines it."""
    table: dict[str, str] = module._HOMES
    return table


def names_of(module: ModuleType) -> list[str]:
    """The public names of a module that are not dunders."""
    return [name for name in module.__all__ if not name.startswith("__")]


def order(name: str) -> tuple[int, str]:
    """Where a name stands: constants, then classes, then the rest."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


@pytest.mark.parametrize("name", PUBLIC)
def test_all_is_a_sorted_tuple(name: str) -> None:
    """`__all__` is a sorted tuple without doubles, and every name in it can be had."""
    module = importlib.import_module(name)
    assert isinstance(module.__all__, tuple)
    assert list(module.__all__) == sorted(set(module.__all__), key=order)
    for public in module.__all__:
        assert hasattr(module, public), public


@pytest.mark.parametrize("name", LAZY)
def test_lazy_table_is_all(name: str) -> None:
    """The lazy table names exactly the public names, in order, and dir() shows them."""
    module = importlib.import_module(name)
    assert list(homes(module)) == names_of(module)
    assert set(module.__all__) <= set(dir(module))


@pytest.mark.parametrize("name", LAZY)
def test_unknown_name_is_an_attribute_error(name: str) -> None:
    """A name that does not exist is refused as in any module."""
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = importlib.import_module(name).nothing


@pytest.mark.parametrize("name", LAZY)
def test_type_checkers_see_the_same_names(name: str) -> None:
    """The imports for type checkers name what the lazy table names, from the same modules."""
    module = importlib.import_module(name)
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    block = source.partition("if TYPE_CHECKING:\n")[2].partition("\n__all__")[0]
    seen: dict[str, str] = {}
    for home, listed in re.findall(r"from ([\w.]+) import (\([^)]*\)|[^\n]+)", block):
        seen |= dict.fromkeys(re.findall(r"\w+", listed), home)
    assert seen == homes(module)


@pytest.mark.parametrize("name", LAZY)
def test_public_home_is_public(name: str) -> None:
    """What a class calls its module is one that a user can import it from."""
    module = importlib.import_module(name)
    for public in names_of(module):
        value: Any = getattr(module, public)
        home = getattr(value, "__module__", name)
        if isinstance(value, type | FunctionType):
            assert not any(part.startswith("_") for part in home.split(".")), public
            assert getattr(importlib.import_module(home), public) is value


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_documented(name: str) -> None:
    """The reference has an entry for each public name."""
    reference = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "docs").glob("*.rst"))
    whole_module = rf"^\.\. automodule:: {re.escape(name)}\n(?:   :.*\n)*   :members:"
    if re.search(whole_module, reference, re.MULTILINE):
        return
    directive = r"^\.\. auto\w+:: (?:[\w.]+\.)?{}$"
    missing = [
        public
        for public in names_of(importlib.import_module(name))
        if not re.search(directive.format(re.escape(public)), reference, re.MULTILINE)
    ]
    assert missing == []


def test_import_takes_no_extra() -> None:
    """`import orchestra`, its contracts, errors and events import no optional dependency."""
    code = (
        "import sys, orchestra, orchestra.abc, orchestra.errors, orchestra.events\n"
        "import orchestra.testing, orchestra.opencode\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert EXTRAS.isdisjoint(run.stdout.split())


def test_import_starts_nothing_heavy() -> None:
    """`import orchestra` alone imports neither anyio nor attrs nor a loop."""
    code = "import sys, orchestra; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"anyio", "attrs", "asyncio"}.isdisjoint(run.stdout.split())
