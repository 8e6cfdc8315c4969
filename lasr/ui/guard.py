"""Who may use the page: host, token and origin of every request; headers of every answer."""

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

# Nothing from other hosts, no script or style within the page, no frame around it.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class Guard:
    """Answers requests that are not allowed, and passes the others on to `app`.

    hosts: the names under which the page is asked for, against sites whose name leads here (DNS
    rebinding); None takes any, which needs a token. cookie: the name of the token's.
    """

    app: App
    hosts: frozenset[str] | None
    token: str | None
    cookie: str

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        answer = self._refusal(Request(scope))
        await (answer or self.app)(scope, receive, with_headers)

    def _refusal(self, request: Request) -> Response | None:
        """The answer to a request that is not passed on."""
        name = urlsplit(f"//{request.headers.get('host', '')}")
        if self.hosts is not None and name.hostname not in self.hosts:
            return PlainTextResponse("This page has another name.", 403)
        if self.token is not None:
            offered = request.query_params.get("token", "")
            if request.url.path == "/" and self._is_token(offered):
                answer = RedirectResponse("/", 303)
                answer.set_cookie(self.cookie, offered, httponly=True, samesite="strict")
                return answer
            if not self._is_token(request.cookies.get(self.cookie, "")):
                text = "Open the address that `lasr ui` printed: it ends in ?token=…"
                return PlainTextResponse(text, 401)
        if request.method != "GET":
            origin = request.headers.get("origin")
            foreign = origin is not None and urlsplit(origin).netloc != name.netloc
            site = request.headers.get("sec-fetch-site", "same-origin")
            if foreign or site not in ("same-origin", "none"):
                return PlainTextResponse("Another site asked for this.", 403)
        return None

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), (self.token or "").encode())
