"""Any endpoint that speaks OpenAI's chat completions (vLLM, llama.cpp, Ollama, SGLang, LM Studio, hosted ones).

Nothing is sent unless a base URL was given. Requests go out several at a time, are tried again with growing waits after errors that
pass (408, 429, 5xx, broken connections, timeouts), and are kept on disk by a hash of address, model, messages and settings, so that
the same question is paid for once. The key comes from an environment variable and goes into one header: it is in no record, no
cache file and no error, not even if the server sends it back. Redirects are not followed, since the key would go along.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ...saes import UserError
from ...saes.io import parse_json, write_json
from .client import Chat, one_line

PASSING = {408, 429, 500, 502, 503, 504, 529}
LONGEST_WAIT_S = 60.0
LARGEST = 4 * 2**20  # bytes of an answer
LONGEST_S = 86_400.0  # of one request


class Asked(NamedTuple):
    """One call of a tool as a model wrote it: an id to answer under, the tool's name, and its arguments as JSON text, unchecked."""

    id: str
    name: str
    arguments: str


class Turn(NamedTuple):
    """One message of a model: what it says, what it calls, and the tokens of the whole request (None where the endpoint counts none)."""

    text: str
    calls: list[Asked]
    tokens: int | None


class Endpoint:
    """A LanguageModel behind `url` (such as http://localhost:8000/v1); `logprobs` asks for probabilities of the next token.

    `tries` per request, `timeout_s` each, `at_once` requests together; `cache` is a folder, None keeps nothing. `pause` waits between
    tries. UserError for an address that is no HTTP URL or carries a password, for a key that no header can hold, and when a request
    fails for good.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_variable: str = "UNWEAVE_API_KEY",
        cache: str | Path | None = None,
        logprobs: bool = False,
        at_once: int = 4,
        tries: int = 5,
        timeout_s: float = 60.0,
        seed: int = 0,
        pause: Callable[[float], Any] | None = None,
    ):
        import httpx

        if not _is_address(url):
            raise UserError(
                "expected an address such as http://localhost:8000/v1, without user or password; got another; "
                f"put the key into the environment variable {key_variable}"
            )
        if min(at_once, tries) < 1 or not 0 < timeout_s <= LONGEST_S:
            raise UserError(
                f"expected at least one request at once, one try and some seconds, at most a day; got {at_once}, {tries}, {timeout_s}"
            )
        self.url, self.name, self.reads_probability = f"{url.rstrip('/')}/chat/completions", model, logprobs
        self._stop = threading.Event()
        self.key_variable, self.tries, self.seed, self.pause = key_variable, tries, seed, pause or self._stop.wait
        self.cache = None if cache is None else Path(cache)
        self.at_once = at_once
        self.sent = 0
        self.timeout_s = timeout_s
        self._http = httpx.Client(timeout=timeout_s, follow_redirects=False)

    def __repr__(self) -> str:
        return f"Endpoint({self.name} at {self.url})"

    def complete(self, chats: Sequence[Chat], tokens: int) -> list[str]:
        """What the model writes, at temperature 0."""
        found = self._all([{"messages": _plain(chat), "max_tokens": tokens} for chat in chats])
        return [_text(answer) for answer in found]

    def probabilities(self, chats: Sequence[Chat]) -> list[float | None]:
        """From the endpoint's list of likeliest next tokens; None where neither digit is among them."""
        asked = {"max_tokens": 1, "logprobs": True, "top_logprobs": 20}
        found = self._all([{"messages": _plain(chat), **asked} for chat in chats])
        return [_chance(answer, self.name) for answer in found]

    def turn(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], tokens: int) -> Turn:
        """The model's next message in a conversation in which it may call `tools` (function calling); at temperature 0, never from
        the cache. What it asks for is returned as it was written: it is not checked here.
        """
        fixed = {"model": self.name, "temperature": 0, "seed": self.seed, "max_tokens": tokens}
        body = {
            **fixed,
            "messages": [dict(message) for message in messages],
            "tools": list(tools),
            "tool_choice": "auto",
        }
        self._stop.clear()
        return self._asked(_writable(body), self._turned)

    def _all(self, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
        fixed = {"model": self.name, "temperature": 0, "seed": self.seed}
        self._stop.clear()
        with ThreadPoolExecutor(self.at_once) as pool:
            try:
                return list(pool.map(self._answer, [_writable({**fixed, **body}) for body in bodies]))
            except BaseException:
                self._stop.set()  # what is under way ends, and is not tried again
                raise

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        file = self._file(body)
        if file is not None and file.exists():
            try:
                return parse_json(file.read_text(encoding="utf-8"), "an answer", str(file))["answer"]
            except (UserError, KeyError, OSError, ValueError):
                pass  # a damaged file of the cache is an answer that is not there
        answer = self._asked(body)
        if file is not None:
            write_json(file, {"url": self.url, "request": body, "answer": answer})
        return answer

    def _file(self, body: dict[str, Any]) -> Path | None:
        if self.cache is None:
            return None
        text = json.dumps([self.url, body], sort_keys=True, ensure_ascii=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return self.cache / digest[:2] / f"{digest}.json"

    def _asked(self, body: dict[str, Any], read: Callable[[bytes, str], Any] | None = None) -> Any:
        import httpx

        read = read or self._parsed

        key = self._key()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        reason = ""
        for number in range(self.tries):
            self.sent += 1
            wait = min(2.0**number, LONGEST_WAIT_S)
            try:
                response, content = self._received(body, headers)
            except httpx.HTTPError as error:
                reason = type(error).__name__
            else:
                if response.status_code == 200:
                    return read(content, key)
                reason = f"status {response.status_code}: {_hidden(content.decode('utf-8', 'replace'), key)}"
                if response.status_code not in PASSING:
                    break
                wait = _wait(response.headers, wait)
            if number + 1 < self.tries:
                self.pause(wait)
            if self._stop.is_set():
                break
        raise UserError(
            f"expected an answer of {self.name} at {self.url}; got {reason} after {number + 1} tries; "
            f"check the address, the model's name and the key in {self.key_variable}; what was answered is kept"
        )

    def _key(self) -> str:
        key = os.environ.get(self.key_variable, "")
        if not key.isascii() or not key.isprintable():
            raise UserError(
                f"expected a key of plain characters in {self.key_variable}; got others or a line break; set it anew"
            )
        return key

    def _received(self, body: dict[str, Any], headers: Mapping[str, str]) -> tuple[Any, bytes]:
        """The response and what it holds, of which no more is read than LARGEST, and not for longer than a request may take."""
        import httpx

        end, content = time.monotonic() + self.timeout_s, bytearray()
        with self._http.stream("POST", self.url, json=body, headers=headers) as response:
            for part in response.iter_bytes():
                content += part
                if len(content) > LARGEST:
                    break
                if time.monotonic() > end:
                    raise httpx.ReadTimeout("the answer did not end", request=response.request)
        return response, bytes(content)

    def _turned(self, content: bytes, key: str) -> Turn:
        """The message of the first choice: its text, what it calls, and how many tokens the endpoint counted."""
        try:
            data: Any = _json_of(content, key)
            message, used = data["choices"][0]["message"], data.get("usage") or {}
            text, calls = message.get("content") or "", message.get("tool_calls") or []
            if not isinstance(text, str) or not isinstance(calls, list):
                raise TypeError
            counted = used.get("total_tokens") if isinstance(used, dict) else None
            asked = [_call(number, one) for number, one in enumerate(calls)]
            return Turn(text, asked, counted if type(counted) is int else None)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            shown = _hidden(content[:200].decode("utf-8", "replace"), key)
            raise UserError(
                f"expected a chat completion with a message or tool calls from {self.url}; got {shown!r}; does this endpoint and "
                "this model know OpenAI's function calling?"
            ) from None

    def _parsed(self, content: bytes, key: str) -> dict[str, Any]:
        """The first choice of an answer, and nothing else of it."""
        try:
            choice = _json_of(content, key)["choices"][0]
            text, logprobs = choice["message"]["content"], choice.get("logprobs")
            if not isinstance(text, str | None):
                raise TypeError
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            shown = _hidden(content[:200].decode("utf-8", "replace"), key)
            raise UserError(
                f"expected a chat completion from {self.url}; got {shown!r}; is it an OpenAI-compatible endpoint?"
            ) from None
        return {"text": text or "", "logprobs": logprobs}  # a model that spent its tokens on thinking wrote null


def _is_address(url: str) -> bool:
    """Whether requests can go to `url`, and no name or password stands in it."""
    import httpx

    try:
        parts, _ = urlsplit(url), httpx.URL(url)
        host = (parts.hostname or "").encode("idna")
    except (ValueError, httpx.InvalidURL):
        return False
    return parts.scheme in ("http", "https") and bool(host) and not parts.username and not parts.password


def _writable(data: Any) -> Any:
    """JSON data without halves of surrogate pairs, which no file and no request can hold."""
    text = json.dumps(data, ensure_ascii=False).encode("utf-16", "surrogatepass")
    return json.loads(text.decode("utf-16", "replace"))


def _json_of(content: bytes, key: str) -> Any:
    """The JSON of an answer without the key; ValueError for one that is too long, or none."""
    if len(content) > LARGEST:
        raise ValueError
    return json.loads(_without(json.dumps(_writable(json.loads(content)), ensure_ascii=False), key))


def _plain(chat: Chat) -> list[dict[str, str]]:
    return [dict(message) for message in chat]


def _text(answer: Mapping[str, Any]) -> str:
    return answer["text"]


def _chance(answer: Mapping[str, Any], name: str) -> float | None:
    try:
        first = answer["logprobs"]["content"][0]["top_logprobs"]
        known = [(str(each["token"]).strip(), float(each["logprob"])) for each in first]
    except (KeyError, IndexError, TypeError, ValueError, OverflowError):
        raise UserError(
            f"expected logprobs from {name}; its endpoint gives none; leave logprobs out, then answers are read as text"
        ) from None
    zero, one = (sum(math.exp(min(value, 0.0)) for token, value in known if token == digit) for digit in "01")
    return one / (zero + one) if zero + one > 0 else None


def _call(number: int, entry: Any) -> Asked:
    """A call as a server sent it: the id may be missing and arguments an object; what names no tool is a call of none, to be told so."""
    entry = entry if isinstance(entry, dict) else {}
    function = entry["function"] if isinstance(entry.get("function"), dict) else {}
    arguments = function.get("arguments") or ""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return Asked(str(entry.get("id") or f"call-{number}"), str(function.get("name") or ""), text)


def _wait(headers: Mapping[str, str], planned: float) -> float:
    try:
        asked = float(headers.get("retry-after", ""))
        return planned if math.isnan(asked) else min(max(asked, 0.0), LONGEST_WAIT_S)
    except ValueError:
        return planned


def _without(text: str, key: str) -> str:
    return text.replace(key, "[key]") if len(key) > 3 else text


def _hidden(text: str, key: str) -> str:
    """The beginning of a server's text without the key, and without what a terminal would obey."""
    return one_line(_without(text, key), 200)
