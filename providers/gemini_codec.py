"""A prompt as the body of Gemini's generateContent, decided without I/O."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Mapping
from typing import Final

from providers.base import Image, Json, JsonFormat, Part, Prompt, Text, Tool, ToolCall, ToolChoice, ToolResult
from providers.codec import call_arguments, https_address, json_object, system_text
from providers.errors import Unsupported
from providers.gemini_schema import gemini_schema

VENDOR: Final = "Gemini"
MAX_STOP_SEQUENCES: Final = 5
SMALL_ANSWER_TOKENS: Final = 2048
"""Below this many output tokens thinking is held down, lest it eat them all."""

FOREIGN_SIGNATURE: Final = "skip_thought_signature_validator"
"""Google's documented stand-in for the signature of a call that Gemini did not make itself."""

_MODES: Final = {"auto": "AUTO", "none": "NONE", "required": "ANY", "named": "ANY"}


def encode(prompt: Prompt) -> dict[str, Json]:
    """The request body of generateContent and streamGenerateContent.

    Raises:
        Unsupported: what Gemini cannot do, by name.
    """
    if len(prompt.stop) > MAX_STOP_SEQUENCES:
        raise Unsupported(f"Gemini takes at most {MAX_STOP_SEQUENCES} stop sequences, not {len(prompt.stop)}")
    if prompt.tools and prompt.response_format is not None and _generation(prompt.model) < 3:
        raise Unsupported(f"{prompt.model} cannot answer in JSON while it has tools")
    contents = _contents(prompt)
    if not contents:
        raise Unsupported("Gemini needs a message other than the system's")
    body: dict[str, Json] = {"contents": contents, "generationConfig": _generation_config(prompt)}
    system = system_text(prompt.messages, VENDOR)
    if system:
        body["systemInstruction"] = {"parts": [{"text": system}]}
    if prompt.tools:
        body["tools"] = [{"functionDeclarations": [_declaration(tool) for tool in prompt.tools]}]
        body["toolConfig"] = {"functionCallingConfig": _calling(prompt.tool_choice)}
    return body


def method_path(model: str, *, stream: bool) -> str:
    """The path below the API version, for one streamed or whole answer.

    Raises:
        Unsupported: a model's name that is no part of an address.
    """
    if re.fullmatch(r"[A-Za-z0-9][\w.\-]*(/[\w.\-]+)?", model) is None or ".." in model:
        raise Unsupported(f"{model!r:.80} is not the name of a Gemini model")
    resource = model if "/" in model else f"models/{model}"
    return f"{resource}:{'streamGenerateContent?alt=sse' if stream else 'generateContent'}"


def calls_so_far(prompt: Prompt) -> int:
    """How many tool calls the conversation holds: minted ids count on from here, so that they stay unique in it."""
    return sum(isinstance(part, ToolCall) for message in prompt.messages for part in message.parts)


def _generation(model: str) -> float:
    """2.5 of "gemini-2.5-flash"; 0 for a name without a number, whose limits are unknown, as are its newer gifts."""
    match = re.search(r"gemini-(\d+(?:\.\d+)?)", model)
    return float(match[1]) if match else 0.0


def _generation_config(prompt: Prompt) -> dict[str, Json]:
    config: dict[str, Json] = {"maxOutputTokens": prompt.max_tokens}
    if prompt.temperature is not None:
        config["temperature"] = prompt.temperature
    if prompt.top_p is not None:
        config["topP"] = prompt.top_p
    if prompt.stop:
        config["stopSequences"] = list(prompt.stop)
    if prompt.response_format is not None:
        config |= _json_format(prompt.response_format)
    thinking = _thinking(prompt.model, prompt.max_tokens)
    if thinking is not None:
        config["thinkingConfig"] = thinking
    return config


def _thinking(model: str, max_tokens: int) -> dict[str, Json] | None:
    """Hold thinking down when the answer has to be short: its tokens count against maxOutputTokens.

    2.5 Flash and Flash-Lite can switch it off. A Flash of the third generation takes a level instead; `LOW` is the
    lowest that every one of them accepts (3.7 and 3.8 answer 400 to `MINIMAL`). Flash-Lite thinks least by default
    there, the Pro models cannot do without, and for other names nothing is known: those are left alone.
    """
    if max_tokens >= SMALL_ANSWER_TOKENS or not re.search(r"-flash(?!.*(image|tts|audio|live))", model):
        return None
    generation = _generation(model)
    if generation == 2.5:
        return {"thinkingBudget": 0}
    if generation >= 3 and "-flash-lite" not in model:
        return {"thinkingLevel": "LOW"}
    return None


def _json_format(wanted: JsonFormat) -> dict[str, Json]:
    config: dict[str, Json] = {"responseMimeType": "application/json"}
    if wanted.schema is not None:
        config["responseJsonSchema"] = gemini_schema(wanted.schema)
    return config


def _declaration(tool: Tool) -> dict[str, Json]:
    declaration: dict[str, Json] = {"name": tool.name, "description": tool.description}
    # A schema without properties is refused by some versions; leaving it out says the same.
    if tool.parameters.get("properties"):
        declaration["parametersJsonSchema"] = gemini_schema(tool.parameters)
    return declaration


def _calling(choice: ToolChoice) -> dict[str, Json]:
    config: dict[str, Json] = {"mode": _MODES[choice.mode]}
    if choice.mode == "named":
        config["allowedFunctionNames"] = [choice.name]
    return config


def _contents(prompt: Prompt) -> list[dict[str, Json]]:
    """The turns, consecutive ones of a role joined: all results of parallel calls have to stand in one turn."""
    contents: list[dict[str, Json]] = []
    names: dict[str, str] = {}
    last_role = None
    signed = _generation(prompt.model) >= 3
    for message in prompt.messages:
        if message.role == "system":
            continue
        parts = [part for part in (_part(p, names) for p in message.parts) if part is not None]
        if signed:
            _sign(parts)
        if not parts:
            continue
        if message.role == last_role:
            contents[-1]["parts"] += parts
        else:
            contents.append({"role": "model" if message.role == "assistant" else "user", "parts": parts})
        last_role = message.role
    return contents


def _part(part: Part, names: dict[str, str]) -> dict[str, Json] | None:
    """One part; `names` collects the function's name by call id, which a result has to repeat."""
    match part:
        case Text(text):
            # Gemini answers 400 to a part without content.
            return {"text": text} if text else None
        case Image():
            return _image(part)
        case ToolCall(call_id, name, arguments, signature):
            names[call_id] = name
            call = {"functionCall": {"id": call_id, "name": name, "args": call_arguments(name, arguments, VENDOR)}}
            return call if signature is None else {**call, "thoughtSignature": signature}
        case ToolResult(call_id):
            if call_id not in names:
                raise Unsupported(f"Gemini needs the call that the tool result {call_id!r} answers")
            return {"functionResponse": {"id": call_id, "name": names[call_id], "response": _response(part)}}


def _sign(parts: list[dict[str, Json]]) -> None:
    """Give the first call of a turn a stand-in signature if none has one.

    From the third generation on, Gemini refuses a turn whose first call has no signature, and calls that another
    vendor made have none.
    """
    calls = [part for part in parts if "functionCall" in part]
    if calls and not any("thoughtSignature" in call for call in calls):
        calls[0]["thoughtSignature"] = FOREIGN_SIGNATURE


def _image(image: Image) -> dict[str, Json]:
    if image.data is not None:
        if not image.media_type:
            raise Unsupported("Gemini needs the media type of an image")
        return {"inlineData": {"mimeType": image.media_type, "data": image.data}}
    url = image.url or ""
    address = https_address(url, VENDOR)
    media_type = image.media_type or mimetypes.guess_type(address.path)[0]
    if media_type is None:
        raise Unsupported("Gemini needs the media type of an image whose address does not tell it")
    return {"fileData": {"mimeType": media_type, "fileUri": url}}


def _response(result: ToolResult) -> Mapping[str, Json]:
    """A tool's answer as the object that Gemini asks for; `output` and `error` are its own words."""
    if result.is_error:
        return {"error": result.content}
    value = json_object(result.content)
    return {"output": result.content} if value is None else value
