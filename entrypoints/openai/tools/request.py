"""The tools that a chat brings, and whether the model may, must or must not call them.

Checks shapes; knows no family's form and no grammar.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from mtactors.errors import RequestError

_MOST_TOOLS = 512
_LONGEST_NAME = 128

Choice = Literal["none", "auto", "required"]


class ToolFields(Protocol):
    """The fields of a body that are about tools; None where they are absent."""

    tools: list[Any] | None
    tool_choice: str | dict[str, Any] | None
    parallel_tool_calls: bool | None


@dataclass(frozen=True, slots=True)
class Tool:
    """One function.

    Args:
        parameters: JSON schema of its arguments.
        given: the tool as the client wrote it.
        place: where it stands in the body, for messages.
    """

    name: str
    parameters: dict[str, Any]
    given: dict[str, Any]
    place: str


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """What a chat wants of tools.

    Args:
        tools: all of them; the model is told of them unless `choice` is "none".
        choice: "required": there must be a call.
        allowed: those that a required call may name: all, or the one that was named.
        parallel: whether there may be more than one call.
    """

    tools: tuple[Tool, ...] = ()
    choice: Choice = "none"
    allowed: tuple[Tool, ...] = ()
    parallel: bool = True

    @property
    def shown(self) -> list[dict[str, Any]] | None:
        """The tools as a chat template sees them."""
        return None if self.choice == "none" else [tool.given for tool in self.tools]


def read_tools(body: ToolFields) -> ToolRequest:
    """Return what a body wants of tools.

    Raises:
        RequestError: a tool or the choice is malformed, or names a tool that is not there.
    """
    if not body.tools:
        if body.tool_choice not in (None, "none", "auto"):
            raise RequestError("tool_choice needs tools", "tool_choice")
        return ToolRequest()
    if len(body.tools) > _MOST_TOOLS:
        raise RequestError(f"there are more than {_MOST_TOOLS} tools", "tools")
    tools = tuple(_tool(tool, f"tools[{place}]") for place, tool in enumerate(body.tools))
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(f"two tools are called {twice!r}", "tools")
    choice, allowed = _choice(body.tool_choice, tools)
    # Who names a function wants that call, once; clients read the first and drop the rest.
    named = isinstance(body.tool_choice, dict)
    return ToolRequest(tools, choice, allowed, body.parallel_tool_calls is not False and not named)


def _tool(tool: object, place: str) -> Tool:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(tool, dict) or tool.get("type", "function") != "function":
        raise RequestError(f'{place} must be an object of type "function"', "tools")
    if not isinstance(function, dict):
        raise RequestError(f"{place}.function must be an object", "tools")
    name = function.get("name")
    if not isinstance(name, str) or not _is_name(name):
        raise RequestError(f"{place}.function.name must be a name", "tools")
    parameters = function.get("parameters")
    if parameters is None:
        parameters = {"type": "object", "properties": {}, "additionalProperties": False}
    if not isinstance(parameters, dict):
        raise RequestError(f"{place}.function.parameters must be a JSON schema", "tools")
    return Tool(name, parameters, tool, place)


def _is_name(text: str) -> bool:
    return 0 < len(text) <= _LONGEST_NAME and text.isprintable() and text == text.strip()


def _choice(given: object, tools: tuple[Tool, ...]) -> tuple[Choice, tuple[Tool, ...]]:
    if given in (None, "auto"):
        return "auto", tools
    if given == "none":
        return "none", ()
    if given == "required":
        return "required", tools
    function = given.get("function") if isinstance(given, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise RequestError(
            'tool_choice must be "none", "auto", "required" or {"type": "function", "function": '
            '{"name": ...}}',
            "tool_choice",
        )
    named = tuple(tool for tool in tools if tool.name == name)
    if not named:
        raise RequestError(
            f"tool_choice names {name!r}, which is not among the tools", "tool_choice"
        )
    return "required", named
