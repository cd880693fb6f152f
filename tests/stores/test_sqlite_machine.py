"""The rows of the file against the same model as the pure core."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from hypothesis import settings
from tests.stores.test_mvcc_core import VersionedMapMachine

from orchestra.errors import ConflictError
from orchestra.revisions import Footprint, Logged, Stored
from orchestra.stores import Body
from orchestra.stores._database import Database, Request


def number_of(stored: Stored) -> Stored:
    """A version with the number that the model put."""
    if not isinstance(stored.body, Body):
        return stored
    return stored._replace(body=int(stored.body.data.split()[0]))


class DatabaseMap:
    """A database with the methods of the pure map."""

    def __init__(self, path: Path) -> None:
        self.database = Database(
            path, durability="process", patience=1.0, is_read_only=False, clock=lambda: 1.0
        )
        self.database.open()
        self._ids = 0

    @property
    def revision(self) -> int:
        return self.database.revision("")

    @property
    def floor(self) -> int:
        return self.database.floor("")

    def read(self, key: str, revision: int) -> Stored | None:
        found = self.database.read("", key, revision)
        return None if found is None else number_of(found)

    def scan(self, prefix: str, revision: int) -> list[tuple[str, Stored]]:
        found = self.database.scan("", prefix, revision)
        return [(key, number_of(stored)) for key, stored in found]

    def log(self, after: int) -> Sequence[Logged]:
        return self.database.log("", after, 1000)

    def commit(self, footprint: Footprint, *, now: float) -> int:
        self._ids += 1
        assert now == 1.0
        for key, value in footprint.writes.items():
            if value is not None:
                # Some values are long, so that they are kept apart from their rows.
                text = f"{value} " + "x" * (600 if int(str(value)) % 3 == 0 else 0)
                footprint.writes[key] = Body(1, text.encode())
        request = Request("", footprint, "", f"t{self._ids}", is_new=True)
        [result] = self.database.commit([request], lambda: None)
        for key, body in footprint.writes.items():
            if isinstance(body, Body):
                footprint.writes[key] = int(body.data.split()[0])
        if isinstance(result, ConflictError):
            raise result
        return result

    def compact(self, revision: int) -> None:
        with self.database.writing("compact"):
            self.database.compact("", revision)


class DatabaseMachine(VersionedMapMachine):
    """The same rules on a file."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.map = DatabaseMap(Path(self.folder.name) / "store.db")  # type: ignore[assignment]

    def kept(self) -> dict[str, list[int]]:
        """The revisions of each key that are kept."""
        rows = self.map.database.sql.execute(  # type: ignore[attr-defined]
            "SELECT key, revision FROM versions ORDER BY revision"
        )
        found: dict[str, list[int]] = {}
        for key, revision in rows:
            found.setdefault(key, []).append(revision)
        return found

    def teardown(self) -> None:
        self.map.database.close()  # type: ignore[attr-defined]
        self.folder.cleanup()


DatabaseMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
test_the_file_is_a_list_of_dictionaries = DatabaseMachine.TestCase
