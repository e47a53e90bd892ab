"""Files that a backend names by X-Sendfile or X-Accel-Redirect, sent in place of its body.

``X-Sendfile: /srv/files/report.pdf`` (Apache's mod_xsendfile, lighttpd) is the path
of a file; ``X-Accel-Redirect: /protected/report.pdf`` (nginx) is a path that
``static.accel`` maps to a folder. Either must lie beneath a folder that the
configuration names, as it is written and in truth: it is opened beneath it
(`tetrapylon.gateway.beneath`), and a link does not lead out. A backend that names
anything else has answered nothing that could be sent (502).

The exchange with the backend is over, its process, thread or connection free, when
the file is sent. The file is then sent as by the static backend, with ranges and
preconditions; the backend's own fields stay, but for what describes the body that
it has not sent.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self
from urllib.parse import unquote_to_bytes

from ..adapters.errors import BackendError, BadGateway, Forbidden
from ..protocols.asgi import Fields, Send
from .beneath import Root, Symlinks, open_beneath
from .file_answers import FileAnswers, OpenFile, asking_fields
from .media_types import MediaTypes

_SENDFILE = b"x-sendfile"
_ACCEL = b"x-accel-redirect"
# What the backend says of a body that is not sent, or what is looked at by itself.
_OF_THE_BODY = frozenset(
    (
        _SENDFILE,
        _ACCEL,
        b"accept-ranges",
        b"content-length",
        b"content-type",
        b"content-range",
        b"etag",
        b"last-modified",
        b"transfer-encoding",
    )
)
# RFC 9110 §15.4.5, and what nginx keeps beside it.
_OF_A_CACHE = frozenset(
    (b"cache-control", b"content-location", b"date", b"expires", b"set-cookie", b"vary")
)
# Segments that no name of a file beneath a folder has.
_UNRESOLVED = frozenset((b"", b".", b".."))


class SentFiles:
    """The folders that files may be sent from, entered with ``async with``.

    ``roots`` are for X-Sendfile, ``accel`` maps prefixes of X-Accel-Redirect to
    folders. ``ranges``, ``symlinks`` and ``mime`` are as the static backend's.
    """

    def __init__(
        self,
        roots: Sequence[str],
        accel: Mapping[str, str],
        *,
        ranges: int,
        symlinks: Symlinks = "inside",
        mime: Mapping[str, str] = {},
    ) -> None:
        # Prefix with its slash → folder; the longest that fits is the one.
        self._folders = {
            _SENDFILE: _by_prefix({root: root for root in roots}),
            _ACCEL: _by_prefix(accel),
        }
        self._symlinks = symlinks
        self._media_types = MediaTypes(mime)
        self._answers = FileAnswers("sendfile", ranges=ranges)
        self._fixed: Fields = [(b"accept-ranges", b"bytes")] if ranges else []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for folders in self._folders.values():
            for root in folders.values():
                root.close()
        self._answers.close()

    def open(self, fields: Fields) -> SentFile:
        """Open the file that the response fields ``fields`` name.

        Raises `NotFound` if there is none of that name in the folders, `BadGateway`
        if it may not be sent, `Unavailable` without descriptors to be had.
        """
        named = [
            (lowered, value) for name, value in fields if (lowered := name.lower()) in self._folders
        ]
        if len(named) != 1:
            raise BadGateway(f"more than one file to be sent: {named!r}")
        (name, value) = named[0]
        if name == _ACCEL:
            # As nginx: a path of a URI, its query without meaning for a file.
            return self._open(name, unquote_to_bytes(value.partition(b"?")[0]), fields)
        try:
            return self._open(name, value, fields)
        except BackendError:
            # Apache and lighttpd decode the path, so many applications encode it.
            decoded = unquote_to_bytes(value)
            if decoded == value:
                raise
            return self._open(name, decoded, fields)

    def _open(self, name: bytes, path: bytes, fields: Fields) -> SentFile:
        folders = self._folders[name]
        prefix = next((prefix for prefix in folders if path.startswith(prefix)), None)
        if prefix is None:
            raise BadGateway(f"{path!r} is in no folder that files may be sent from ({name!r})")
        below = path[len(prefix) :]
        if not _UNRESOLVED.isdisjoint(below.split(b"/")):
            raise BadGateway(f"{path!r} is not the plain name of a file ({name!r})")
        try:
            fd, status = open_beneath(folders[prefix].fileno(), below, symlinks=self._symlinks)
        except (Forbidden, IsADirectoryError) as error:
            raise BadGateway(f"{path!r} may not be sent ({name!r}): {error}") from error
        except OSError as error:
            raise BadGateway(f"{path!r} cannot be sent ({name!r}): {error}") from error
        own = [(name, value) for name, value in fields if name.lower() not in _OF_THE_BODY]
        content_type = next(
            (value for name, value in fields if name.lower() == b"content-type" and value),
            self._media_types.of(below),
        )
        return SentFile(self._answers, OpenFile(fd), status, content_type, [*own, *self._fixed])


class SentFile:
    """A file to be sent with the fields of a backend; whoever has it closes it."""

    def __init__(
        self,
        answers: FileAnswers,
        file: OpenFile,
        status: os.stat_result,
        content_type: bytes,
        fields: Fields,
    ) -> None:
        self._answers = answers
        self._file = file
        self._status = status
        self._content_type = content_type
        self._fields = fields

    async def answer(self, method: str, request_fields: Fields, status: int, send: Send) -> None:
        """Send it as the answer to a request, under the backend's ``status``.

        Ranges and preconditions are for 200 to GET and HEAD: any other status, or
        an answer to another method, is about what the backend did.
        """
        if status != 200 or method not in ("GET", "HEAD"):
            fields = [(b"content-type", self._content_type), *self._fields]
            await self._answers.answer_as(
                status, method, self._file, self._status.st_size, send, fields
            )
            return
        await self._answers.answer(
            method,
            asking_fields(request_fields),
            self._file,
            self._status,
            send,
            content_type=self._content_type,
            fields=self._fields,
            cache_fields=[field for field in self._fields if field[0].lower() in _OF_A_CACHE],
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _by_prefix(folders: Mapping[str, str]) -> dict[bytes, Root]:
    """Return the folders by their prefixes with a slash at the end, the longest first."""
    prefixes = sorted(folders, key=len, reverse=True)
    return {os.fsencode(prefix).rstrip(b"/") + b"/": Root(folders[prefix]) for prefix in prefixes}
