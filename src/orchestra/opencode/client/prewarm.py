"""Making a server load what a directory needs, before the first prompt has to wait for it.

The server reads a directory's configuration and providers when the first session in it is
created, and the rest when its first prompt gets as far as the model. The rest is reached by
prompting a model that nobody can reach: nothing is generated and nothing is billed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import anyio

from orchestra.opencode.client.config import BASE_AGENT
from orchestra.opencode.client.http import WIRE_ERRORS

if TYPE_CHECKING:
    from orchestra.opencode.client.workspace import Workspace

__all__ = ("prewarm",)

_LOG = logging.getLogger(__name__)

_LIMIT = 20.0
"""Seconds that the throw-away prompt may take; then the directory is as warm as it gets."""
_DELETE_LIMIT = 10.0


async def prewarm(workspace: Workspace, model: Mapping[str, str] | None) -> None:
    """Warm a directory up in a session that is deleted afterwards; once, however many ask.

    Args:
        workspace: The directory.
        model: The unreachable model, as a prompt names it. None: create the session only, which
            is about two thirds of it.
    """
    async with workspace.warming:
        if workspace.is_warm:
            return
        http = workspace.http
        with anyio.CancelScope(shield=True):  # a session that nobody knows of must not be left
            info = await http.create_session(
                workspace.directory,
                title="orchestra: prewarm",
                agent=None,
                permission=(),
                metadata={},
            )
        try:
            await anyio.lowlevel.checkpoint()
            if model is not None:
                with workspace.watching(info.id) as halted:
                    await http.prompt(info.id, _body(workspace, model))
                    with anyio.move_on_after(_LIMIT):
                        await halted.wait()
            workspace.is_warm = True
        finally:
            with anyio.move_on_after(_DELETE_LIMIT, shield=True):
                try:
                    await workspace.discard(info.id)
                except WIRE_ERRORS as exc:
                    _LOG.warning("the prewarming session %s was not deleted: %s", info.id, exc)


def _body(workspace: Workspace, model: Mapping[str, str]) -> dict[str, object]:
    part = {"id": workspace.make_id("prt"), "type": "text", "text": "hello"}
    return {
        "messageID": workspace.make_id("msg"),
        "agent": BASE_AGENT,
        "model": model,
        "parts": [part],
    }
