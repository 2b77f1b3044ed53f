"""A client's request as one model's prompt: from the wire's models to the providers' types. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from processor.messages import ChatMessage, NamedTool, Request
from processor.parts import ImagePart, TextPart, ToolCallPart, ToolResultPart
from providers.base import Image, JsonFormat, Message, Prompt, Text, Tool, ToolCall, ToolChoice, ToolResult
from providers.base import Part as PromptPart

DEFAULT_MAX_TOKENS = 4096
"""Where the client names none, or the model's own limit if that is less."""


def answer_limit(max_tokens: int | None, max_output: int) -> int:
    """The longest answer, in tokens, of a request for `max_tokens` to a model that writes at most `max_output`."""
    return min(max_tokens or DEFAULT_MAX_TOKENS, max_output)


def build_prompt(request: Request, *, model_id: str, max_output: int, stream: bool, stable_messages: int = 0) -> Prompt:
    """The prompt for the model `model_id`, which writes at most `max_output` tokens.

    So many of its first messages as `stable_messages` says came before (`processor.prefixes`).
    """
    return Prompt(
        model=model_id,
        messages=tuple(Message(m.role, tuple(_parts(m))) for m in request.messages),
        max_tokens=answer_limit(request.max_tokens, max_output),
        stream=stream,
        temperature=request.temperature,
        top_p=request.top_p,
        stop=request.stop,
        tools=tuple(Tool(t.name, t.description, t.parameters) for t in request.tools),
        tool_choice=_tool_choice(request),
        response_format=_response_format(request),
        stable_messages=stable_messages,
    )


def _parts(message: ChatMessage) -> Iterator[PromptPart]:
    for part in message.parts:
        match part:
            case TextPart(text=text):
                yield Text(text)
            case ImagePart(media_type=media_type, data=data, url=url):
                yield Image(media_type, data, url)
            case ToolCallPart(id=call_id, name=name, arguments=arguments, signature=signature):
                yield ToolCall(call_id, name, arguments, signature)
            case ToolResultPart(tool_call_id=call_id, content=content, is_error=is_error):
                yield ToolResult(call_id, content, is_error)


def _tool_choice(request: Request) -> ToolChoice:
    choice = request.tool_choice
    if isinstance(choice, NamedTool):
        return ToolChoice("named", choice.name)
    return ToolChoice(choice or "auto")


def _response_format(request: Request) -> JsonFormat | None:
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return None
    return JsonFormat(wanted.json_schema, wanted.name)
