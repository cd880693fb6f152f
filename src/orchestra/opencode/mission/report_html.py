"""A mission's report as one HTML page that needs nothing else: no script, no font, no network.

Everything that agents and commands wrote is escaped, and the page's own policy forbids scripts and
loading, so that a hostile answer stays text.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Iterable, Iterator

from orchestra.events import Usage
from orchestra.opencode.mission.report import (
    CommandResult,
    CostNode,
    Evidence,
    MissionReport,
    Receipt,
    TaskReport,
    TaskState,
)
from orchestra.opencode.mission.report_svg import clean, draw_lanes, draw_load, duration
from orchestra.opencode.mission.report_waits import WAITS_STYLE, waits_section

__all__ = ("report_to_html",)

_STATE_CLASSES = {
    TaskState.ACCEPTED: "ok",
    TaskState.FAILED: "bad",
    TaskState.SKIPPED: "cut",
}
_LEGEND = (
    ("wait", "waits for its turn"),
    ("done", "work done, to be judged"),
    ("ok", "accepted"),
    ("again", "sent back"),
    ("bad", "failed"),
    ("cut", "stopped"),
)
_MOST_FILES = 200
"""Files of each kind that the page names."""
_ROLES = ("commander", "planner", "worker", "reviewer", "acceptance")

_STYLE = (
    """
:root { color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b2330; --soft: #5d6878; --line: #e2e6ec;
  --band: #f8f9fb; --wait: #cfd6e0; --done: #6c9bd9; --ok: #3d9c66; --again: #dd9a25;
  --bad: #cf4a4f; --cut: #8d97a6; --commander: #8a6fc4; --planner: #b987c9; --onbar: #ffffff; }
@media (prefers-color-scheme: dark) { :root {
  --page: #12161d; --card: #1a202a; --ink: #e4e9f0; --soft: #98a4b5; --line: #2b3443;
  --band: #1e2530; --wait: #465265; --done: #5b8cd0; --ok: #44a670; --again: #d1922b;
  --bad: #d45d61; --cut: #748094; --commander: #9880d0; --planner: #bd92cc; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 32px 20px 60px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1240px; margin: 0 auto; }
h1 { font-size: 24px; line-height: 1.3; margin: 10px 0 4px; font-weight: 650;
  white-space: pre-wrap; overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 0 0 12px; font-weight: 650; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 18px 20px; margin-top: 18px; }
p { margin: 0 0 6px; } .soft, .facts dt, footer { color: var(--soft); }
.pill { display: inline-block; padding: 1px 10px; border-radius: 999px; font-size: 12.5px;
  font-weight: 600; color: var(--onbar); background: var(--cut); white-space: nowrap; }
.pill.ok { background: var(--ok); } .pill.bad { background: var(--bad); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 12px;
  margin: 18px 0 0; }
.facts div { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 12px 16px; }
.facts dt { font-size: 12.5px; } .facts dd { margin: 2px 0 0; font-size: 19px; font-weight: 650;
  font-variant-numeric: tabular-nums; }
.facts small { font-size: 13px; font-weight: 400; color: var(--soft); }
ul.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 0 0 10px;
  padding: 0; font-size: 13px; color: var(--soft); }
.legend svg { width: 14px; height: 12px; vertical-align: -1px; margin-right: 6px; }
.picture { overflow: auto; max-height: 85vh; } svg { display: block; width: 100%; }
.legend svg { display: inline-block; }
svg text { fill: var(--soft); font-size: 11px; }
svg .lane { fill: var(--ink); } svg .id { font-weight: 650; } svg .own { font-weight: 650; }
svg .bar { fill: var(--onbar); font-size: 10.5px; pointer-events: none; }
svg .grid { stroke: var(--line); } svg .band { fill: var(--band); }
.wait { fill: var(--wait); } .done { fill: var(--done); } .ok { fill: var(--ok); }
.again { fill: var(--again); } .bad { fill: var(--bad); } .cut { fill: var(--cut); }
.role { fill: var(--done); } .reviewer { fill: var(--ok); } .acceptance { fill: var(--again); }
.commander { fill: var(--commander); } .planner { fill: var(--planner); }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; color: var(--soft); font-weight: 500; font-size: 12.5px; }
th, td { padding: 7px 12px 7px 0; border-top: 1px solid var(--line); vertical-align: top; }
tr:first-child th { border-top: 0; } td { overflow-wrap: anywhere; unicode-bidi: isolate; }
td.number, th.number { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
td ul { margin: 0; padding-left: 18px; } details { margin-top: 2px; }
summary { cursor: pointer; color: var(--soft); font-size: 13px; }
code, pre { font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 6px 0; padding: 10px 12px;
  background: var(--band); border: 1px solid var(--line); border-radius: 8px;
  max-height: 320px; overflow: auto; }
footer { margin-top: 18px; font-size: 13px; }
"""
    + WAITS_STYLE
)


def report_to_html(report: MissionReport) -> str:
    """Return the report as a whole HTML document.

    Args:
        report: The report.
    """
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    body = "\n".join(part for part in _sections(report) if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{clean(report.outcome.value)}: {clean(report.goal, 80)}</title>\n"
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _sections(report: MissionReport) -> Iterator[str]:
    yield _head(report)
    yield _facts(report)
    if report.warnings:
        items = "".join(f"<li>{clean(warning, 2000)}</li>" for warning in report.warnings)
        yield f"<section><h2>Warnings</h2><ul>{items}</ul></section>"
    if report.timeline:
        pictures = [_lanes(report), _load(report)]
        # With very many rows, the picture that fits the screen comes first.
        yield from pictures if len(report.tasks) <= 80 else reversed(pictures)
    yield waits_section(report)
    yield _tasks(report)
    if report.costs is not None and report.costs.tokens:
        yield _costs(report.costs)
    if report.commands or report.receipt is not None:
        results = "".join(_command(result) for result in report.commands)
        proof = "" if report.receipt is None else "".join(_receipt(report.receipt))
        yield f"<section><h2>Acceptance of the whole mission</h2>{results}{proof}</section>"
    if report.evidence is not None:
        yield _evidence(report.evidence)
    yield (
        f"<footer>Workspace <code>{clean(report.directory)}</code>, started "
        f"{clean(report.started_at) or 'at an unknown time'}. The same facts for programs: "
        "<code>report.json</code>.</footer>"
    )


def _evidence(evidence: Evidence) -> str:
    kinds = {"new": evidence.added, "changed": evidence.changed, "removed": evidence.removed}
    rows = "".join(
        f"<tr><td>{kind}</td><td><code>{clean(path, 500)}</code></td></tr>"
        for kind, paths in kinds.items()
        for path in paths[:_MOST_FILES]
    )
    more = evidence.unlisted + sum(max(0, len(paths) - _MOST_FILES) for paths in kinds.values())
    rows += f"<tr><td></td><td>and {more:,} more</td></tr>" if more else ""
    table = f"<table>{rows}</table>" if rows else '<p class="soft">No file was changed.</p>'
    return (
        f'<section><h2>Files</h2>{table}<p class="soft">{evidence.files:,} files, SHA-256 of '
        f"the tree <code>{clean(evidence.before[:16])}</code> before and "
        f"<code>{clean(evidence.after[:16])}</code> after.</p></section>"
    )


def _costs(costs: CostNode) -> str:
    rows = "".join(_cost_rows(costs, 0))
    return (
        "<section><h2>Cost</h2>\n<table><tr><th>of what</th>"
        '<th class="number">with its parts</th><th class="number">itself</th></tr>\n'
        f"{rows}</table></section>"
    )


def _cost_rows(node: CostNode, depth: int) -> Iterator[str]:
    indent = "&emsp;" * depth
    yield (
        f"<tr><td>{indent}{clean(node.name, 100)}</td>"
        f'<td class="number">{_amount(node.tokens, node.dollars)}</td>'
        f'<td class="number">{_amount(node.own_tokens, node.own_dollars)}</td></tr>\n'
    )
    for part in node.parts:
        yield from _cost_rows(part, depth + 1)


def _amount(tokens: int, dollars: float) -> str:
    if not tokens and not dollars:
        return "none"
    return f"${dollars:,.4f}<small> {tokens:,} tokens</small>"


def _lanes(report: MissionReport) -> str:
    legend = "".join(_key(kind, text) for kind, text in _LEGEND)
    return (
        f'<section><h2>Timeline</h2><ul class="legend">{legend}'
        "<li>tall: work \u00b7 middle: review \u00b7 low: acceptance commands</li></ul>"
        f'<div class="picture">{draw_lanes(report)}</div></section>'
    )


def _load(report: MissionReport) -> str:
    present = {span.name for span in report.timeline}
    legend = "".join(_key(f"role {name}", name) for name in _ROLES if name in present)
    return (
        f'<section><h2>At work at the same time</h2><ul class="legend">{legend}'
        f"{_key('wait', 'waiting')}</ul>{draw_load(report)}</section>"
    )


def _key(kind: str, text: str) -> str:
    swatch = f'<svg viewBox="0 0 14 12"><rect class="{kind}" width="14" height="12" rx="3"/></svg>'
    return f"<li>{swatch}{text}</li>"


def _head(report: MissionReport) -> str:
    kind = {"accepted": "ok", "failed": "bad"}.get(report.outcome.value, "cut")
    goal = report.goal.strip()
    rest = (
        f"<details><summary>the whole goal</summary><pre>{clean(goal)}</pre></details>"
        if len(goal) > 200
        else ""
    )
    return (
        f'<header><span class="pill {kind}">{report.outcome.value}</span>'
        f'<h1>{clean(goal, 200)}</h1>{rest}<p class="soft">{clean(report.reason, 2000)}</p>'
        "</header>"
    )


def _facts(report: MissionReport) -> str:
    accepted = sum(task.state is TaskState.ACCEPTED for task in report.tasks)
    again = sum(max(task.rounds - 1, 0) for task in report.tasks)
    busy = sum(max(span.ended - span.started, 0.0) for span in report.timeline)
    facts = [
        ("tasks accepted", f"{accepted}<small> of {len(report.tasks)}</small>"),
        ("took", duration(report.elapsed)),
        ("work in it", duration(busy)),
        ("extra rounds", f"{again}"),
        ("agent turns", f"{report.statistics.get('turns', 0):,}"),
        ("cost", _cost(report.usage)),
        ("backend", clean(report.backend, 20)),
    ]
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    return f'<dl class="facts">{cells}</dl>'


def _cost(usage: Usage) -> str:
    return _amount(usage.input_tokens + usage.output_tokens + usage.reasoning_tokens, usage.cost)


def _tasks(report: MissionReport) -> str:
    if not report.tasks:
        return ""
    busy: dict[str | None, float] = {}
    for span in report.timeline:
        took = max(span.ended - span.started, 0.0)
        busy[span.task_id] = busy.get(span.task_id, 0.0) + took
    rows = "\n".join(_task(task, busy.get(task.id, 0.0)) for task in report.tasks)
    return (
        "<section><h2>Tasks</h2>\n<table><tr><th>task</th><th>state</th>"
        '<th class="number">rounds</th><th class="number">at work</th>'
        f'<th class="number">cost</th><th>what happened</th></tr>\n{rows}\n</table></section>'
    )


def _task(task: TaskReport, busy: float) -> str:
    kind = _STATE_CLASSES.get(task.state, "cut")
    waits = f'<div class="soft">after {clean(", ".join(task.depends), 200)}</div>'
    return (
        f"<tr><td><b>{clean(task.id)}</b> {clean(task.title, 200)}"
        f"{waits if task.depends else ''}</td>"
        f'<td><span class="pill {kind}">{task.state.value}</span></td>'
        f'<td class="number">{task.rounds}</td><td class="number">{duration(busy)}</td>'
        f'<td class="number">{_cost(task.usage)}</td><td>{"".join(_story(task))}</td></tr>'
    )


def _story(task: TaskReport) -> Iterable[str]:
    if task.reasons:
        items = "".join(f"<li>{clean(reason, 1000)}</li>" for reason in task.reasons)
        yield f"<ul>{items}</ul>"
    if task.summary:
        first = next((line for line in task.summary.splitlines() if line.strip()), "")
        if len(task.summary) <= 160 and first == task.summary.strip():
            yield f"<div>{clean(first)}</div>"
        else:
            yield (
                f"<details><summary>{clean(first, 120)}</summary>"
                f"<pre>{clean(task.summary)}</pre></details>"
            )
    yield from map(_command, task.commands)
    if task.receipt is not None:
        yield from _receipt(task.receipt)


def _receipt(receipt: Receipt) -> Iterable[str]:
    """Say what was checked; the commands stand beside it."""
    kind, verdict = ("ok", "passed") if receipt.is_passed else ("bad", "not passed")
    files = f"{len(receipt.changed):,} changed file{'' if len(receipt.changed) == 1 else 's'}"
    yield (
        f'<div class="soft"><span class="pill {kind}">{clean(receipt.stage)}: {verdict}</span> '
        f"{files}, tree <code>{clean(receipt.tree[:16]) or 'unknown'}</code></div>"
    )
    notes = [
        f"<code>{clean(finding.path, 500)}:{finding.line}</code> {clean(finding.message, 300)}"
        for finding in receipt.findings[:_MOST_FILES]
    ]
    notes += [
        f"<code>{clean(path, 500)}</code> was put back: the task had no lease on it"
        for path in receipt.strays[:_MOST_FILES]
    ]
    if notes:
        yield f"<ul>{''.join(f'<li>{note}</li>' for note in notes)}</ul>"


def _command(result: CommandResult) -> str:
    if result.refusal:
        kind, verdict = "cut", f"not run: {result.refusal}"
    elif result.is_failed:
        kind, verdict = "bad", result.error or f"exit code {result.exit_code}"
    else:
        kind, verdict = "ok", "succeeded"
    line = (
        f'<span class="pill {kind}">{clean(verdict, 300)}</span> '
        f"<code>{clean(shlex.join(result.argv), 300)}</code>"
    )
    if not result.refusal:
        line += f' <span class="soft">{duration(result.elapsed)}</span>'
    if not result.output.strip():
        return f"<div>{line}</div>"
    return f"<details><summary>{line}</summary><pre>{clean(result.output)}</pre></details>"
