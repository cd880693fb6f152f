"""Which step of which rule answers a request to the scripted model.

Everything here is data and pure functions; `orchestra.testing.model_server` puts it on a socket.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

from attrs import field, frozen

from orchestra.testing.model_steps import (
    FAULTS,
    STEPS,
    Fault,
    Reply,
    Script,
    ToolCall,
    is_count,
)

__all__ = ("ModelRequest", "Rule", "ScriptError", "agent_of")

Text: TypeAlias = str | re.Pattern[str] | Callable[[str], bool]
"""How a text is matched: a substring, a pattern to search for, or a predicate."""


@frozen(kw_only=True)
class ModelRequest:
    """One chat-completions request, as the model saw it.

    Attributes:
        number: Its place in the order of arrival, from 0.
        time: Seconds since the server started.
        agent: The agent's name, read from the system text.
        system: All system text.
        prompt: The text of the last user message.
        step: How many answers the model has already given to that user message.
        model: The model asked for.
        tools: The names of the tools offered.
        is_streamed: Whether the answer is wanted as a stream.
        session_id: The header ``x-session-id`` (OpenCode sends its session's id), or empty.
        headers: All headers, in lower case.
        body: The whole decoded body, ``messages`` and all.
    """

    number: int
    time: float
    agent: str
    system: str = field(repr=False)
    prompt: str
    step: int
    model: str
    tools: tuple[str, ...] = field(repr=False)
    is_streamed: bool
    session_id: str
    headers: Mapping[str, str] = field(repr=False)
    body: Mapping[str, Any] = field(repr=False)

    @property
    def messages(self) -> Sequence[Mapping[str, Any]]:
        """The conversation, as it was sent."""
        messages: Sequence[Mapping[str, Any]] = self.body["messages"]
        return messages

    @property
    def turn(self) -> tuple[str, int, str]:
        """The conversation, its length and the prompt, the same in all requests of one turn.

        A conversation without ``x-session-id`` is known by its system text and first message.
        """
        users = [text_of(m) for m in self.messages if m.get("role") == "user"]
        conversation = self.session_id or _digest(self.system, *users[:1])
        return conversation, len(users), _digest(self.prompt)


def _is_answer(_rule: object, _attribute: object, value: Any) -> None:
    steps = value if isinstance(value, list | tuple) else [value]
    if not callable(value) and not (steps and all(isinstance(step, STEPS) for step in steps)):
        raise TypeError(f"answer is {value!r}, but must be a step, steps, or a function")


@frozen(kw_only=True)
class Rule:
    """Who is answered, and with what. A condition that is left out always holds.

    Attributes:
        agent: The agent's name, as `agent_of` (or the model's own function) reads it.
        prompt: The text of the last user message.
        system: The system text.
        tool: A tool that is offered.
        when: Any other condition on the request.
        answer: The steps of one turn, one for each model call. A fault in the list stands before
            the reply that follows it, and counts within one turn. When all steps are given and
            the model is asked again, the request is refused as not scripted. Or a function of
            the request, called (and awaited, if need be) for each model call: the one step that
            it returns is the answer to that call, and steps are read as those of the turn.
        times: In how many turns the rule may be used; None means no limit. A turn that began
            with this rule ends with it.
        name: What the rule is called in messages.
    """

    agent: str | None = None
    prompt: Text | None = None
    system: Text | None = None
    tool: str | None = None
    when: Callable[[ModelRequest], bool] | None = None
    answer: Script | Callable[[ModelRequest], Script | Awaitable[Script]] = field(
        validator=_is_answer
    )
    times: int | None = field(default=None, validator=is_count)
    name: str = ""

    def matches(self, request: ModelRequest) -> bool:
        """Whether every condition holds for the request (``times`` is not looked at).

        Args:
            request: The request to answer.
        """
        return (
            (self.agent is None or self.agent == request.agent)
            and (self.prompt is None or text_matches(self.prompt, request.prompt))
            and (self.system is None or text_matches(self.system, request.system))
            and (self.tool is None or self.tool in request.tools)
            and (self.when is None or self.when(request))
        )


class ScriptError(Exception):
    """The script has no answer for a request."""


class Playbook:
    """Chooses the step for a request; remembers only what cannot be read from the request.

    Args:
        rules: The rules in order; the first that matches answers.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = tuple(rules)
        self._turns: dict[int, set[object]] = {}
        self._faults: dict[object, int] = {}

    def rule_for(self, request: ModelRequest) -> tuple[int, Rule]:
        """The first rule that matches and is not used up; it counts as used in this turn.

        Args:
            request: The request to answer.

        Raises:
            ScriptError: There is none.
        """
        for index, rule in enumerate(self._rules):
            if not rule.matches(request):
                continue
            if rule.times is not None:
                turns = self._turns.setdefault(index, set())
                if request.turn not in turns and len(turns) >= rule.times:
                    continue
                turns.add(request.turn)
            return index, rule
        raise ScriptError(
            f"no rule matches agent {request.agent!r} with the prompt "
            f"{request.prompt[:80]!r}; add a Rule for it"
        )

    def step_for(self, request: ModelRequest, index: int, script: Script) -> Reply | Fault:
        """The step of a script that the request has reached; a fault counts as used.

        Args:
            request: The request to answer.
            index: The place of the script's rule.
            script: The rule's answer, or what the rule's function returned.

        Raises:
            ScriptError: All steps have been given.
        """
        rule = self._rules[index]
        if callable(rule.answer) and isinstance(script, STEPS):
            return script if isinstance(script, FAULTS) else _as_reply(script)
        steps = [script] if isinstance(script, STEPS) else list(script)
        answered = 0
        for position, step in enumerate(steps):
            if isinstance(step, FAULTS):
                if answered == request.step and self._take(step, (index, position, request.turn)):
                    return step
            elif answered == request.step:
                return _as_reply(step)
            else:
                answered += 1
        raise ScriptError(
            f"agent {request.agent!r} asks for answer {request.step + 1} to the prompt "
            f"{request.prompt[:80]!r}, but rule {rule.name or index} "
            f"has {answered}; add a step"
        )

    def _take(self, fault: Fault, key: object) -> bool:
        if fault.times is None:
            return True
        used = self._faults.get(key, 0)
        if used >= fault.times:
            return False
        self._faults[key] = used + 1
        return True


def _as_reply(step: str | ToolCall | Reply) -> Reply:
    if isinstance(step, Reply):
        return step
    if isinstance(step, ToolCall):
        return Reply(calls=(step,))
    if isinstance(step, str):
        return Reply(step)
    raise TypeError(f"{step!r} is not a step of a script")


def agent_of(system: str) -> str:
    """The agent's name: the word in "You are the Worker" at the start of a line, in lower case.

    OpenCode's own helpers have no such line and are known as ``title`` and ``compaction``.

    Args:
        system: The system text of a request.

    Returns:
        The name, or an empty string.
    """
    if found := _ROLE.search(system):
        return found[1].lower()
    return next((name for name, marker in _BUILT_IN if marker in system), "")


_ROLE = re.compile(r"^\W*You are the (\w[\w-]*)", re.MULTILINE | re.IGNORECASE)
_BUILT_IN = (("title", "title generator"), ("compaction", "summariz"))

DEFAULT_RULES = (
    Rule(agent="title", answer=lambda _request: "A scripted session", name="title"),
    Rule(agent="compaction", answer=lambda _request: "Nothing to add.", name="compaction"),
)


def parse_request(
    body: object,
    *,
    headers: Mapping[str, str],
    number: int,
    time: float,
    identify: Callable[[str], str],
) -> ModelRequest:
    """Read a decoded request body.

    Args:
        body: The decoded JSON.
        headers: The request's headers, in lower case.
        number: The request's place in the order of arrival.
        time: Seconds since the server started.
        identify: Reads the agent's name from the system text.

    Raises:
        ValueError: The body is not a chat-completions request.
    """
    if not isinstance(body, dict):
        raise ValueError("the body must be a JSON object")  # noqa: TRY004 - all faults of the body are one error
    messages = body.get("messages")
    if not (isinstance(messages, list) and all(isinstance(m, dict) for m in messages)):
        raise ValueError("'messages' must be a list of objects")
    system = "\n".join(text_of(m) for m in messages if m.get("role") in {"system", "developer"})
    last = max((i for i, m in enumerate(messages) if m.get("role") == "user"), default=-1)
    return ModelRequest(
        number=number,
        time=time,
        agent=identify(system),
        system=system,
        prompt=text_of(messages[last]) if last >= 0 else "",
        step=sum(m.get("role") == "assistant" for m in messages[last + 1 :]),
        model=str(body.get("model", "")),
        tools=_tool_names(body.get("tools") or ()),
        is_streamed=body.get("stream") is True,
        session_id=headers.get("x-session-id", ""),
        headers=headers,
        body=body,
    )


def _tool_names(tools: Any) -> tuple[str, ...]:
    try:
        return tuple(str(tool["function"]["name"]) for tool in tools)
    except (TypeError, LookupError):
        raise ValueError("'tools' must be a list of objects with a function's name") from None


def text_of(message: Mapping[str, Any]) -> str:
    """The text of one message; parts that are not text are left out.

    Args:
        message: A message of a chat-completions request.
    """
    content = message.get("content")
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        return "\n".join(part for part in parts if part and isinstance(part, str))
    return content if isinstance(content, str) else ""


def text_matches(wanted: Text, text: str) -> bool:
    """Whether a text is what a rule asks for.

    Args:
        wanted: A substring, a pattern to search for, or a predicate.
        text: The text.
    """
    if isinstance(wanted, str):
        return wanted in text
    return wanted.search(text) is not None if isinstance(wanted, re.Pattern) else wanted(text)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:16]
