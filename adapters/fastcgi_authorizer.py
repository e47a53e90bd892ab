"""A FastCGI application that says whether others may answer a request.

FastCGI Specification 1.0, section 6.3, the Authorizer role. It gets the request's
variables without its body, and answers as a script does. Status 200 lets the
request pass, and its ``Variable-NAME`` fields become variables of the request
for whoever answers it; with any other status its answer is the client's. An
authorizer that fails lets nobody pass.
"""

from __future__ import annotations

import re
from contextlib import AbstractAsyncContextManager, nullcontext

from ..protocols.asgi import Fields, Message, Receive, Scope, Send
from ..protocols.fastcgi import Role
from .errors import BadGateway, LocalRedirect, Truncated, is_under_gateway
from .exchange import Departure, SpooledBody
from .fastcgi_to_asgi import FastCgiToAsgi

_PREFIX = b"variable-"
# As everywhere one spelling of a name is left: upper case, and `_` for `-`.
_NAME = re.compile(rb"[A-Za-z0-9_-]+")
# What says which request it is: another answer to that is another request.
_FIXED = frozenset(
    (
        *("CONTENT_LENGTH", "CONTENT_TYPE", "DOCUMENT_ROOT", "DOCUMENT_URI", "GATEWAY_INTERFACE"),
        *("HTTPS", "HTTP_PROXY", "PATH_INFO", "PATH_TRANSLATED", "QUERY_STRING"),
        *("REDIRECT_STATUS", "REMOTE_ADDR", "REMOTE_HOST", "REMOTE_PORT", "REQUEST_METHOD"),
        *("REQUEST_SCHEME", "REQUEST_URI", "SCGI", "SCRIPT_FILENAME", "SCRIPT_NAME"),
        *("SERVER_ADDR", "SERVER_NAME", "SERVER_PORT", "SERVER_PROTOCOL", "SERVER_SOFTWARE"),
    )
)
# A permission has no content; whoever sends without end shall not hold a request.
_IGNORED_BYTES = 64 * 1024


class FastCgiAuthorizer:
    """``application`` in its other role; it keeps its connections, waits and limits."""

    def __init__(self, application: FastCgiToAsgi) -> None:
        self._application = application

    async def authorize(self, scope: Scope, receive: Receive, send: Send) -> dict[str, str] | None:
        """Return the request's new variables; ``None`` if it was refused, and is answered.

        Nothing is received: the body is still there for who answers. Raises what
        `tetrapylon.adapters.errors` lists.
        """
        application = self._application
        verdict = _Verdict(send)
        departure: AbstractAsyncContextManager[object] = nullcontext()
        if is_under_gateway(scope):
            # Elsewhere only receiving tells of a departure.
            departure = Departure(scope, receive)
        variables = application.params.of_authorizer(scope)
        params = application.encoder.encoded(variables)
        try:
            async with departure:
                await application.exchange(
                    scope["method"], params, SpooledBody(), verdict.send, role=Role.AUTHORIZER
                )
        except LocalRedirect as redirect:
            # A refusal: the page is for the client to ask for.
            fields = [(b"location", redirect.target), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 302, "headers": fields})
            await send({"type": "http.response.body", "body": b""})
            return None
        except Truncated as error:
            if verdict.is_answered:
                return None
            if verdict.variables is None:
                raise
            # Half a permission is none, and the client has seen nothing yet.
            raise BadGateway(str(error)) from error
        return verdict.variables


class _Verdict:
    """Sends a refusal on and keeps a permission."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._ignored_bytes = 0
        #: The client has all of a refusal.
        self.is_answered = False
        self.variables: dict[str, str] | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            fields: Fields = message["headers"]
            # Section 6.3: 200 and no other, not even another 2xx.
            if message["status"] == 200:
                self.variables = _variables(fields)
                return
            kept = [field for field in fields if not field[0].startswith(_PREFIX)]
            message = {**message, "headers": kept}
        elif self.variables is not None:
            # Section 6.3: the content of a permission is ignored.
            self._ignored_bytes += len(message["body"])
            if self._ignored_bytes > _IGNORED_BYTES:
                raise BadGateway("the content of the authorizer's permission does not end")
            return
        await self._send(message)
        self.is_answered = not message.get("more_body", True)


def _variables(fields: Fields) -> dict[str, str]:
    variables: dict[str, str] = {}
    for name, value in fields:
        if not name.startswith(_PREFIX):
            continue
        word = name.removeprefix(_PREFIX)
        if _NAME.fullmatch(word) is None:
            raise BadGateway(f"the authorizer sets {word!r}, which is no variable's name")
        key = word.decode("ascii").upper().replace("-", "_")
        if key in _FIXED or key in variables:
            why = "twice" if key in variables else "which is the request's own"
            raise BadGateway(f"the authorizer sets {key}, {why}")
        variables[key] = value.decode("latin-1")
    return variables
