from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from orchestra.testing import check_session_backend

if TYPE_CHECKING:
    from tests.opencode.conftest import RealServer


@pytest.mark.real_server
async def test_the_real_server_fulfils_the_contract(
    real_server: RealServer, tmp_path: Path
) -> None:
    """The backend, attached to a real server, passes the contract suite."""
    await check_session_backend(real_server.backend, directory=tmp_path)
