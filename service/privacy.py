"""What engines and jobs say, before a client reads it: no path of the server, no foreign name."""

import json
import re

# an absolute path of two parts at least, but no path of a URL or of this API
_PART = r"[^\s/'\"`,;:()<>\[\]{}]"
_PATH = re.compile(rf"(?<![\w.:/~-])/(?!v1/)(?:{_PART}+/)+({_PART}*)")
# an adapter as engines know it: BASE+NAME@DIGEST, with a mark where it is a tenant's
_ADAPTER = re.compile(r"[\w.~*-]+\+[\w.*-]+@[0-9a-f]{12,64}(?:\.[\w]+)*")
_MARK = re.compile(r"~[0-9a-f]{16}")  # in the id of a tenant's own base


def public(text: str) -> str:
    """The text with the last part alone of every path, and no name that only engines know."""
    text = _PATH.sub(lambda path: path[1] or "a directory", text)
    return _MARK.sub("", _ADAPTER.sub("an adapter", text))


def public_refusal(status: int, content: bytes) -> bytes:
    """What a client reads of an engine's answer that is an error; any other is as it was.

    What a request did wrong is told; what went wrong in the engine is not.
    """
    if status < 400:
        return content
    if status >= 500:
        message = "the engine failed at this request; the server's log tells more"
        return _error({"message": message, "type": "server_error", "code": "engine_error"})
    try:
        error = json.loads(content)["error"]
        return _error({**error, "message": public(str(error["message"]))})
    except (ValueError, KeyError, TypeError):
        return _error({"message": "the engine refused this request", "type": "BadRequestError"})


def _error(error: dict[str, object]) -> bytes:
    return json.dumps({"error": {"param": None, "code": None} | error}).encode()
