"""Checks a store's file: the chain of its journal, and every body against the journal."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from orchestra._core.chain import body_digest, find_fault, genesis, read_changes
from orchestra.revisions import Link, Verification
from orchestra.stores._database import Database

__all__ = ("check_file",)


def check_file(database: Database, name: str, anchors: Mapping[int, str]) -> Verification:
    """Check one namespace, in one read transaction of a connection of its own. Blocks.

    Args:
        database: Open, and used by nobody else meanwhile.
        name: The namespace.
        anchors: Digests that are known from elsewhere, by revision.
    """
    sql = database.sql
    with database.reading():
        (verdict,) = sql.execute("PRAGMA quick_check(1)").fetchone()
        revision, _, digest = database.head(name)
        said = " ".join(verdict.split())
        fault = (0, f"the file is damaged: {said}") if verdict != "ok" else None
        if fault is None:
            links = database.links(name, 0, -1)
            newest = sql.execute(
                "SELECT coalesce(max(revision), 0) FROM versions WHERE namespace = ?",
                (database.namespace_id(name),),
            ).fetchone()[0]
            last = max(revision, newest, database.floor(name))
            chain = find_fault(name, links, anchors=anchors, last=last)
            bodies = _find_body_fault(sql, database, name, links)
            fault = min(filter(None, (chain, bodies)), default=None)
    return Verification(
        revision=revision,
        digest=(digest or genesis(name)).hex(),
        fault=fault[1] if fault else "",
        fault_revision=fault[0] if fault else None,
    )


def _find_body_fault(
    sql: sqlite3.Connection, database: Database, name: str, links: list[Link]
) -> tuple[int, str] | None:
    """Return the first revision with a body that is not what its record says."""
    floor = database.floor(name)
    wanted: dict[tuple[str, int], str | None] = {}
    newest: dict[str, int] = {}
    for link in links:
        try:
            changes = read_changes(link.changes)
        except (TypeError, ValueError):
            return link.revision, f"the record of revision {link.revision} cannot be read"
        for key, digest, _ in changes:
            if link.revision <= floor:
                # Of what is older than the floor only the last version is kept, if it is a value.
                wanted.pop((key, newest.get(key, 0)), None)
                newest[key] = link.revision
            if link.revision > floor or digest is not None:
                wanted[key, link.revision] = digest
    found: list[tuple[int, str]] = []
    rows = sql.execute(
        "SELECT key, revision, schema, body FROM kept WHERE namespace = ?",
        (database.namespace_id(name),),
    )
    for key, revision, schema, body in rows:
        if (key, revision) not in wanted:
            found.append((revision, f"{key!r} has a value of revision {revision} without a record"))
            continue
        digest = wanted.pop((key, revision))
        if schema is not None and body is None:
            found.append((revision, f"the value of {key!r} in revision {revision} is missing"))
        elif digest != _digest(schema, body):
            found.append((revision, f"the value of {key!r} in revision {revision} was altered"))
    found.extend(
        (revision, f"the value of {key!r} in revision {revision} is missing")
        for key, revision in wanted
    )
    return min(found, default=None)


def _digest(schema: int | None, body: object) -> str | None:
    if schema is None:
        return None
    return body_digest(schema, body) if isinstance(body, bytes) else "not even bytes"
