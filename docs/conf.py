"""How the documentation is built: ``sphinx-build -W -n docs docs/_build/html``."""

from __future__ import annotations

from typing import Any

from orchestra import __version__

project = "orchestra"
author = "The orchestra authors"
project_copyright = "the orchestra authors"
release = __version__
version = ".".join(__version__.split(".")[:2])

extensions = ["sphinx.ext.autodoc", "sphinx.ext.doctest", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "benchmarks"]
html_theme = "furo"
html_title = f"orchestra {version}"
default_role = "any"
nitpicky = True

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True

# Names of other projects. Their documentation is elsewhere, and building this one needs no network.
nitpick_ignore_regex = [
    (r"py:.*", r"(orchestra\.\w+\.)?[PT]"),  # what a decorator takes and gives
    (
        r"py:.*",
        r"(anyio|attrs?|collections|pathlib|types|typing|os|enum|contextlib|abc|re|decimal)\..*",
    ),
    (
        r"py:.*",
        r"(signal\.)?Signals|EndingFunction|BeforeExit|ClosedResourceError|Place|Stock|Label",
    ),
    (r"py:.*", r"(Path|Any|Self|TracebackType|PathLike|Enum|ABC|TypeAlias)"),
    (r"py:.*", r"(Async)?(Iterator|Iterable|Generator)|Mapping|Callable|Awaitable|Sequence"),
    (r"py:.*", r"(threading|concurrent\.futures)\..*|orchestra\.\w+\.[TRD]|Future"),
    (
        r"py:.*",
        r"orchestra\.opencode\.mission\.(machine|content|spending|scrubbing|waits|critical_path)\..*",
    ),  # kept private
    (r"py:.*", r"Tokens|Lane"),  # private names in signatures
    (r"py:.*", r"orchestra\..*\.[TP]|random\.Random"),
    (r"py:.*", r"AbstractAsyncContextManager|AsyncContextManagerMixin|CapacityLimiter|TaskGroup"),
    (
        r"py:.*",
        r"(OSError|ValueError|TypeError|RuntimeError|TimeoutError|NotADirectoryError|.*Interrupt)",
    ),
]

# What only factories make: how it is constructed is nobody's business.
FROM_FACTORIES = {
    "orchestra.ConcurrencyToken",
    "orchestra.Reservation",
    "orchestra.ShutdownGuard",
    "orchestra.ShutdownHandler",
    "orchestra.Stealer",
    "orchestra.TaskScope",
    "orchestra.TrackedResource",
    "orchestra.Turn",
}


def hide_private_constructor(*arguments: Any) -> tuple[str, None] | None:
    """Leave the signature of such a class out.

    Args:
        arguments: The application, what is documented, its name, and more.
    """
    return ("", None) if arguments[2] in FROM_FACTORIES else None


def setup(app: Any) -> None:
    """Connect the above.

    Args:
        app: The Sphinx application.
    """
    app.connect("autodoc-process-signature", hide_private_constructor)
