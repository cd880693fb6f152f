"""Four programs that play the roles of a mission: they tidy a sample project with `ast`.

Nothing here knows of a model. The same mission file runs on a real server with
``--backend opencode``; then prompts take the place of these functions.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import anyio

from orchestra import Turn
from orchestra.opencode import read_task

PLACEHOLDER = "TODO"


def undocumented(directory: Path) -> list[Path]:
    """Return the modules without a docstring, relative to the workspace."""
    modules = sorted(path for path in directory.rglob("*.py") if "tests" not in path.parts)
    return [
        module.relative_to(directory)
        for module in modules
        if ast.get_docstring(ast.parse(module.read_text("utf-8"))) is None
    ]


def command(turn: Turn) -> str:
    """Commander: look at the workspace, and say what is to be done and when it is done."""
    modules = undocumented(turn.directory)
    return (
        f"{len(modules)} modules have no docstring: {', '.join(map(str, modules))}. They can be "
        "done side by side, one task each. Done when the unit tests still pass."
    )


def plan(turn: Turn) -> str:
    """Planner: one task per module, so that no two workers write the same file."""
    tasks = [
        {
            "id": module.stem,
            "title": f"Give {module} a docstring",
            "instructions": f"Add a module docstring to {module} that says what it is for.",
            "files": [module.as_posix()],
            "depends": [],
            "acceptance": ["python3 -B -m unittest -q"],
        }
        for module in undocumented(turn.directory)
    ]
    return json.dumps({"tasks": tasks})


async def work(turn: Turn) -> str:
    """Worker: write the docstring.

    One worker is careless on purpose: its first try for ``loans`` leaves a placeholder. The
    reviewer sends it back with the reason, and the second round is right.
    """
    task = read_task(turn.prompt)
    module = turn.directory / task.files[0]
    source = module.read_text("utf-8")
    tree = ast.parse(source)
    await turn.tool_call("read", {"path": task.files[0]}, output=source)
    is_first_try = "<reasons>" not in turn.prompt
    docstring = PLACEHOLDER if task.id == "loans" and is_first_try else describe(tree)
    edited = f'"""{docstring}"""\n\n{without_docstring(source, tree)}'
    compile(edited, task.files[0], "exec")
    # Others run the tests at this moment: they must never import half a file.
    draft = module.with_suffix(".draft")
    draft.write_text(edited, encoding="utf-8")
    draft.replace(module)
    await turn.tool_call("edit", {"path": task.files[0]}, output=docstring)
    return f"{task.files[0]} now begins with: {docstring}"


async def review(turn: Turn) -> str:
    """Reviewer: look at the file, not at the summary, and run the tests."""
    task = read_task(turn.prompt)
    reasons = []
    for name in task.files:
        docstring = ast.get_docstring(ast.parse((turn.directory / name).read_text("utf-8")))
        if not docstring:
            reasons.append(f"{name}: there is no docstring; say what the module is for")
        elif PLACEHOLDER in docstring:
            reasons.append(
                f"{name}: the docstring is the placeholder {docstring!r}; say what the module "
                "is for"
            )
    tests = await anyio.run_process(
        [sys.executable, "-B", "-m", "unittest", "-q"],
        cwd=turn.directory,
        check=False,
        stderr=subprocess.STDOUT,
    )
    output = tests.stdout.decode("utf-8", "replace")
    await turn.tool_call("bash", {"command": "python3 -B -m unittest -q"}, output=output)
    if tests.returncode != 0:
        reasons.append(f"the tests fail: {output[-500:]}")
    return json.dumps({"verdict": "reject" if reasons else "accept", "reasons": reasons})


def describe(tree: ast.Module) -> str:
    """Say what a module offers, from its public classes, functions and constants."""
    names = [
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and not node.name.startswith("_")
    ]
    listed = " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
    return f"Offers {listed}." if names else "Constants of the library."


def without_docstring(source: str, tree: ast.Module) -> str:
    """Return the source without the docstring it may begin with."""
    if ast.get_docstring(tree) is None:
        return source
    return "".join(source.splitlines(keepends=True)[tree.body[0].end_lineno :]).lstrip("\n")
