"""One call of a WSGI application: what its thread and its request's coroutine share.

PEP 3333, "Specification Details". The thread runs the application and makes the
response's head and blocks; the coroutine (`tetrapylon.adapters.wsgi_to_asgi`)
sends them as ASGI messages. In between stand plain attributes, and an order
makes them safe without a lock: the thread changes attributes and *then* posts
the call to the loop's mailbox; the coroutine, once told, reads ``is_ended``
*before* it takes the blocks, so that whatever it misses is announced again.

A response that is there at once (a list; a first block that fills its
Content-Length) costs one message between the threads. Otherwise the thread runs
ahead of the client by `AHEAD_BYTES` at most, and then waits.
"""

from __future__ import annotations

import contextvars
import io
import logging
import traceback
from asyncio import Future
from collections import deque
from collections.abc import Iterable
from queue import Empty, SimpleQueue

from ..protocols.asgi import Fields, Message, Scope
from ..protocols.cgi.meta_variables import meta_variables
from ..protocols.errors import LocalProtocolError
from ..protocols.fields import FILE_FIELDS
from ..protocols.wsgi import (
    Application,
    Environ,
    ExcInfo,
    Write,
    encode_fields,
    parse_status,
)
from .exchange import SpooledBody
from .wsgi_streams import ErrorStream, StreamedInput, escaped, escaped_traceback
from .wsgi_threads import Job, Mailbox

logger = logging.getLogger("tetrapylon.adapters.wsgi")

#: How far a streaming application may be ahead of its client, in bytes.
AHEAD_BYTES = 64 * 1024
#: How much an application may make of a body that is not to be sent (HEAD, 204, 304).
DROPPED_BYTES = 64 * 1024

_FAILURE_CHARACTERS = 500


class ClientLeft(ConnectionError):
    """Raised by ``write`` and ``wsgi.input`` when the client is no longer there."""


class Call(Job):
    """The state of one request; the module's text says who may touch what when."""

    __slots__ = (
        "_ahead_bytes",
        "_answers",
        "_application",
        "_body",
        "_client_idle_s",
        "_content_length",
        "_context",
        "_fields",
        "_has_news",
        "_has_no_body",
        "_is_overlong",
        "_is_posted",
        "_is_streamed",
        "_length",
        "_mailbox",
        "_scope",
        "_status",
        "_variables",
        "_waiter",
        "blocks",
        "failure",
        "head",
        "is_asking",
        "is_ended",
        "is_expired",
        "is_gone",
        "wants_body",
    )

    def __init__(
        self,
        application: Application,
        scope: Scope,
        body: bytes | SpooledBody,
        *,
        is_streamed: bool,
        variables: Environ,
        mailbox: Mailbox,
        client_idle_s: float | None,
    ) -> None:
        """Prepare a call in the context of the calling task.

        ``body`` is the request's, or its first piece if it ``is_streamed``;
        ``variables`` go into the environ as they are; ``client_idle_s`` is how
        many seconds the thread waits for a client that takes or gives nothing.
        """
        self._application = application
        self._scope = scope
        self._body = body
        self._is_streamed = is_streamed
        self._variables = variables
        self._mailbox = mailbox
        self._client_idle_s = client_idle_s
        self._context = contextvars.copy_context()

        # The thread's own: the response as the application gave it so far
        self._status = 0
        self._fields: Fields = []
        self._content_length: int | None = None
        self._has_no_body = False
        self._length = 0
        self._is_overlong = False
        self._ahead_bytes = 0

        # From the thread to the coroutine
        #: The ``http.response.start`` message; from then on the head cannot change.
        self.head: Message | None = None
        self.blocks: deque[bytes] = deque()
        #: Nothing will be added any more.
        self.is_ended = False
        #: Why there is no (whole) response, in one line that is safe to log.
        self.failure = ""
        #: The thread waits: until all blocks are sent, or for a piece if it `wants_body`.
        self.is_asking = False
        self.wants_body = False
        self.is_expired = False
        self._is_posted = False

        # From the coroutine to the thread
        self._answers: SimpleQueue[bytes] | None = None
        #: Nobody will take what is still to come.
        self.is_gone = False

        # The loop's own
        self._has_news = False
        self._waiter: Future[None] | None = None

    # On the loop

    def on_news(self) -> None:
        """Wake the coroutine."""
        self._is_posted = False
        self._has_news = True
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def expire(self) -> None:
        """Take note that no thread came in time."""
        self.is_expired = True
        self._post()

    def leave(self) -> None:
        """Have the thread's next write or read raise `ClientLeft`."""
        self.is_gone = True
        # The thread makes `_answers` before it looks at `is_gone`: one of the two is seen.
        if self._answers is not None:
            self._answers.put(b"")
        self._post()

    async def news(self) -> None:
        """Wait until something may have changed (in the coroutine)."""
        if not self._has_news:
            self._waiter = self._mailbox.loop.create_future()
            await self._waiter
        self._has_news = False

    def answer(self, piece: bytes) -> None:
        """Let the thread that is asking go on, with the piece of the body if it wants one."""
        self.is_asking = self.wants_body = False
        assert self._answers is not None
        self._answers.put(piece)

    # In the thread

    def run(self) -> None:
        """Run the application from its call to its ``close()``; never raises."""
        self._context.run(self._run)

    def _run(self) -> None:
        errors = ErrorStream()
        iterable: Iterable[bytes] | None = None
        try:
            iterable = self._application(self._environ(errors), self.start_response)
            # PEP 3333 lets the server look at the length of what it was given.
            if isinstance(iterable, (list, tuple)):
                for block in iterable:
                    self._take(block)
            else:
                for block in iterable:
                    if self._take(block):
                        self._hand_over()
                    if self._is_overlong:
                        break
            self._end()
        except BaseException as error:
            # SystemExit too: it would end a thread of the pool, and not the process.
            self._fail(error)
        # PEP 3333: however the request ended.
        close = getattr(iterable, "close", None)
        if close is not None:
            try:
                close()
            except BaseException as error:
                self._log(error)
        errors.flush()
        body = self._body
        if not isinstance(body, bytes):
            body.close()

    def _environ(self, errors: ErrorStream) -> Environ:
        body = self._body
        length: int | None
        if self._is_streamed:
            assert isinstance(body, bytes)
            length = None
            stream: object = io.BufferedReader(StreamedInput(body, self._next_piece))
        elif isinstance(body, bytes):
            length = len(body)
            stream = io.BytesIO(body)
        else:
            length = body.length
            stream = io.BytesIO(body.data) if body.file is None else body.file
        environ: Environ = meta_variables(
            self._scope,
            content_length=length,
            # Unlike a child's environment, nobody but the application reads this.
            pass_authorization=True,
        )
        environ.update(self._variables)
        environ["wsgi.url_scheme"] = self._scope.get("scheme", "http")
        environ["wsgi.input"] = stream
        environ["wsgi.errors"] = errors
        return environ

    def start_response(
        self,
        status: str,
        headers: list[tuple[str, str]],
        exc_info: ExcInfo | None = None,
    ) -> Write:
        """Take status and headers (PEP 3333, "The start_response Callable").

        Raises `LocalProtocolError` for what the application may not say, and
        the exception of ``exc_info`` if the head is on its way already.
        """
        if exc_info is not None:
            try:
                if self.head is not None:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # PEP 3333: no cycle through the traceback
        elif self._status:
            raise LocalProtocolError("start_response was called twice, without exc_info")
        code = parse_status(status)
        if code < 200:
            raise LocalProtocolError(f"start_response: status {status!r} is the server's to send")
        self._fields, self._content_length = encode_fields(headers)
        if self._content_length is not None and not FILE_FIELDS.isdisjoint(
            name for name, _ in self._fields
        ):
            self._content_length = None
            self._fields = [field for field in self._fields if field[0] != b"content-length"]
        self._status = code
        self._has_no_body = code in (204, 304) or self._scope["method"] == "HEAD"
        return self.write

    def write(self, data: bytes) -> None:
        """Have data sent (PEP 3333, "The write Callable")."""
        if self._take(data):
            self._hand_over()

    def _take(self, block: bytes) -> bool:
        """Put a block with what is to be sent; tell whether there is more than before."""
        if self.is_gone:
            raise ClientLeft("the client has left")
        if not isinstance(block, bytes):
            raise LocalProtocolError(f"a block of the body is {type(block).__name__}, not bytes")
        if not block:
            return False  # PEP 3333: "not yet"
        if not self._status:
            raise LocalProtocolError("a block of the body came before start_response was called")
        before = self._length
        self._length = before + len(block)
        if self._has_no_body:
            self._is_overlong = self._length > DROPPED_BYTES
            return self.head is None
        if self.is_ended or (
            self._content_length is not None and self._length > self._content_length
        ):
            if not self._is_overlong:
                self._is_overlong = True
                logger.warning(
                    "%s: the body is longer than its Content-Length; the rest is dropped",
                    self._request(),
                )
            block = b"" if self.is_ended else block[: (self._content_length or 0) - before]
            if not block:
                return False
        self.blocks.append(block)
        self._ahead_bytes += len(block)
        return True

    def _hand_over(self) -> None:
        """Have what was taken sent; wait if that is too far ahead of the client."""
        if self.head is None:
            self._make_head()
        if not self._has_no_body and self._is_filled():
            # All that the client waits for is there: it need not wait for what the
            # application does after its last block. Frameworks yield one such block.
            self.is_ended = True
        self._post()
        if self._ahead_bytes >= AHEAD_BYTES and not self.is_ended:
            self._ahead_bytes = 0
            self._ask()

    def _end(self) -> None:
        if self.is_ended:
            return
        if not self._status:
            raise LocalProtocolError("the application returned without calling start_response")
        if self._content_length is not None:
            if not self._has_no_body and not self._is_filled():
                raise LocalProtocolError(
                    f"the body has {self._length} bytes of the {self._content_length} that its"
                    " Content-Length promised"
                )
        elif self.head is None and not self._has_no_body:
            # PEP 3333, "Handling the Content-Length Header": all blocks are known.
            self._fields.append((b"content-length", b"%d" % self._length))
        if self.head is None:
            self._make_head()
        self.is_ended = True
        self._post()

    def _is_filled(self) -> bool:
        return self._content_length is not None and self._length >= self._content_length

    def _make_head(self) -> None:
        fields = self._fields
        if self._status == 204 and self._content_length is not None:
            # RFC 9110 §8.6: no Content-Length with 204.
            fields = [field for field in fields if field[0] != b"content-length"]
        self.head = {"type": "http.response.start", "status": self._status, "headers": fields}

    def _next_piece(self) -> bytes:
        """Return more of a streamed request body; ``b""`` at its end."""
        if self.is_ended:
            # The coroutine may be gone, and with it whoever could ask the client for more.
            raise ClientLeft("the response has ended")
        self.wants_body = True
        return self._ask()

    def _ask(self) -> bytes:
        """Wait until the coroutine has sent all there is, or for a piece if one is wanted."""
        if self._answers is None:
            self._answers = SimpleQueue()
        self.is_asking = True
        self._post()
        answer = b""
        if not self.is_gone:
            try:
                answer = self._answers.get(timeout=self._client_idle_s)
            except Empty:
                self.leave()
        if self.is_gone:
            raise ClientLeft("the client has left, or moves nothing")
        return answer

    def _fail(self, error: BaseException) -> None:
        if not (self.is_gone and isinstance(error, ClientLeft)):
            self._log(error)
        if self.is_ended:
            return
        try:
            text = repr(error)
        except Exception:
            text = type(error).__name__
        self.failure = "the application raised " + escaped(text[:_FAILURE_CHARACTERS])
        self.is_ended = True
        self._post()

    def _log(self, error: BaseException) -> None:
        """Log the traceback, unless it shows nothing but this module."""
        frames = traceback.walk_tb(error.__traceback__)
        if all(frame.f_code.co_filename == __file__ for frame, _ in frames):
            return
        logger.error("%s: the application raised\n%s", self._request(), escaped_traceback(error))

    def _request(self) -> str:
        return f"{self._scope['method']} {escaped(self._scope['path'])}"

    # In both

    def _post(self) -> None:
        # Down goes the flag in `on_news`, before the coroutine looks at anything.
        if not self._is_posted:
            self._is_posted = True
            self._mailbox.post(self)
