"""Profiles by a model behind OpenAI's protocol: `POST URL/chat/completions`, with retries where trying again helps.

Histories leave this machine; the caller chose so.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from types import TracebackType
from typing import Self

import httpx

from oppu.describe.writer import ANSWER_TOKENS
from oppu.errors import ConfigError, ModelError, OppuError

CONTEXT = 8192
"""Tokens for a request and its answer, where nothing else is said: a server does not tell."""
_TOGETHER = 4
_LONGEST_PAUSE_S = 60.0
_BYTES_PER_TOKEN = 3
"""English has about 4; the tokenizer is the server's, so more tokens are reckoned with than there are."""
_GO_ON = "the profiles that were made are kept, and the same command goes on from there"


class RemoteWriter:
    """A model behind a URL as a `Writer`. Close it, or use it in a `with` statement."""

    def __init__(
        self,
        url: str,
        model: str,
        key: str | None = None,
        *,
        answer_tokens: int = ANSWER_TOKENS,
        context: int | None = None,
        attempts: int = 5,
        pause_s: float = 1.0,
        timeout_s: float = 300.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`url`: up to and with `/v1`. `pause_s` before the second attempt, doubled before each later one."""
        self.answer_tokens = answer_tokens
        self.context = CONTEXT if context is None else context
        self._model = model
        self._attempts, self._pause_s, self._sleep = attempts, pause_s, sleep
        try:
            self._url = httpx.URL(url.rstrip("/") + "/chat/completions")
        except httpx.InvalidURL as error:
            raise ConfigError(f"no usable address: {error}", where="--url", fix="use http://HOST/v1") from None
        if self._url.scheme not in ("http", "https") or not self._url.host:
            raise ConfigError("no http:// or https:// address", where="--url", fix="use http://HOST/v1")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(timeout=timeout_s, headers=headers)

    @property
    def made(self) -> str:
        """`api:` and the model's name."""
        return f"api:{self._model}"

    @property
    def fingerprint(self) -> str:
        """The model's name: more is not known of it."""
        return self._model

    def tokens(self, text: str) -> int:
        """An estimate, rather too high."""
        return -(-len(text.encode("utf-8", "replace")) // _BYTES_PER_TOKEN)

    def at_once(self, tokens: int) -> int:
        """One user's, of however many requests: a refused one then costs its own user's alone."""
        return 1

    def write(self, requests: Sequence[str]) -> list[str]:
        """See `Writer`. ConfigError or OppuError where no request would be answered."""
        with ThreadPoolExecutor(_TOGETHER) as pool:
            return list(pool.map(self._answer, requests))

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self, request: str) -> str:
        for attempt in range(1, self._attempts + 1):
            pause_s = self._pause_s * 2 ** (attempt - 1)
            try:
                response = self._client.post(self._url, json=self._body(request))
            except httpx.RequestError as error:
                problem = f"cannot be reached or broke off: {str(error) or type(error).__name__}"
            else:
                if response.status_code == HTTPStatus.OK:
                    return self._text(response)
                if not _may_pass(response):
                    raise self._refusal(response)
                problem = f"keeps answering {_said(response)}"
                pause_s = _asked_pause_s(response, pause_s)
            if attempt < self._attempts:
                self._sleep(min(pause_s, _LONGEST_PAUSE_S))
        raise OppuError(f"the server {problem} ({self._attempts} attempts)", where=self._shown, fix=_GO_ON)

    def _body(self, request: str) -> dict[str, object]:
        return {
            "model": self._model,
            "messages": [{"role": "user", "content": request}],
            "max_tokens": self.answer_tokens,
            "temperature": 0,
        }

    def _text(self, response: httpx.Response) -> str:
        text: object = None
        try:
            message = dict(response.json()["choices"][0]["message"])
            if (text := message["content"]) is None:  # of this user's request: filtered, or out of tokens
                fix = "give it more tokens with --tokens, or use another model"
                raise ModelError("the server answered with no text", where=self._shown, fix=fix)
        except (ValueError, LookupError, TypeError):
            pass
        if not isinstance(text, str):
            what = "the server's answer is not that of OpenAI's chat completions"
            raise ConfigError(what, where=self._shown, fix="check --url; it usually ends in /v1")
        return text

    def _refusal(self, response: httpx.Response) -> OppuError:
        """ModelError where another user's request may be taken; else an error that ends the run."""
        said = f"the server answered {_said(response)}"
        match response.status_code:
            case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
                return ConfigError(said, where=self._shown, fix="set OPENAI_API_KEY to a key that it takes")
            case HTTPStatus.NOT_FOUND | HTTPStatus.METHOD_NOT_ALLOWED:
                return ConfigError(said, where=self._shown, fix="check --url, which usually ends in /v1, and --model")
            case status if 300 <= status < 400:
                return ConfigError(said, where=self._shown, fix="give the address that it leads to")
            case _:
                return ModelError(said, where=self._shown, fix="fewer tokens with --context may help")

    @property
    def _shown(self) -> str:
        """The address without a name and a password."""
        return str(self._url.copy_with(username=None, password=None))


def _may_pass(response: httpx.Response) -> bool:
    status = response.status_code
    return status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS) or status >= 500


def _asked_pause_s(response: httpx.Response, otherwise: float) -> float:
    """What the server asks for in seconds; a date or nonsense counts as nothing."""
    asked = response.headers.get("Retry-After", "")
    return float(asked) if asked.isdecimal() else otherwise


def _said(response: httpx.Response) -> str:
    """The status, and OpenAI's message where there is one, in one line."""
    status = f"{response.status_code} {response.reason_phrase}".strip()
    try:
        message = response.json()["error"]["message"]
    except (ValueError, LookupError, TypeError):
        return status
    return f"{status} ({' '.join(str(message).split())[:300]})"
