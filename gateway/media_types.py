"""Media types by the end of a file's name: one table, the same on every machine.

Not the standard library's `mimetypes`: it reads what the system has installed
and changes between Python versions, so that one site would be served
differently by two machines. What is not in the table is
``application/octet-stream``; the static backend's ``mime`` adds and overrides.
Types are those registered with IANA, or the WHATWG's for what the web made up.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..protocols.fields import is_field_value

DEFAULT = b"application/octet-stream"

#: Media type → the ends of names, without the dot.
TYPES: dict[str, str] = {
    # Text; every one is sent as UTF-8.
    "text/html": "html htm",
    "text/css": "css",
    "text/javascript": "js mjs cjs",  # RFC 9239
    "text/plain": "txt text log conf ini diff patch",
    "text/markdown": "md markdown",  # RFC 7763
    "text/csv": "csv",  # RFC 4180
    "text/tab-separated-values": "tsv",
    "text/calendar": "ics",
    "text/vcard": "vcf",
    "text/vtt": "vtt",
    # Data and documents
    "application/json": "json map",  # RFC 8259: always UTF-8, no charset
    "application/ld+json": "jsonld",
    "application/geo+json": "geojson",
    "application/manifest+json": "webmanifest",
    "application/xml": "xml xsl xsd",
    "application/xhtml+xml": "xhtml xht",
    "application/rss+xml": "rss",
    "application/atom+xml": "atom",
    "application/yaml": "yaml yml",  # RFC 9512
    "application/toml": "toml",
    "application/sql": "sql",
    "application/pdf": "pdf",
    "application/rtf": "rtf",
    "application/postscript": "ps eps ai",
    "application/epub+zip": "epub",
    "application/wasm": "wasm",
    "application/msword": "doc",
    "application/vnd.ms-excel": "xls",
    "application/vnd.ms-powerpoint": "ppt",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": "pptx",
    "application/vnd.oasis.opendocument.text": "odt",
    "application/vnd.oasis.opendocument.spreadsheet": "ods",
    "application/vnd.oasis.opendocument.presentation": "odp",
    # Archives and packages
    "application/zip": "zip",
    "application/gzip": "gz tgz",
    "application/zstd": "zst",
    "application/x-bzip2": "bz2",
    "application/x-xz": "xz",
    "application/x-7z-compressed": "7z",
    "application/x-tar": "tar",
    "application/vnd.rar": "rar",
    "application/java-archive": "jar war",
    "application/vnd.android.package-archive": "apk",
    "application/vnd.debian.binary-package": "deb",
    "application/x-rpm": "rpm",
    # Images
    "image/png": "png",
    "image/jpeg": "jpg jpeg",
    "image/gif": "gif",
    "image/webp": "webp",
    "image/avif": "avif",
    "image/apng": "apng",
    "image/svg+xml": "svg",
    "image/vnd.microsoft.icon": "ico",
    "image/bmp": "bmp",
    "image/tiff": "tif tiff",
    "image/jxl": "jxl",
    "image/heic": "heic",
    # Sound and film
    "audio/mpeg": "mp3",
    "audio/mp4": "m4a",
    "audio/ogg": "ogg oga opus",
    "audio/wav": "wav",
    "audio/flac": "flac",
    "audio/aac": "aac",
    "audio/midi": "mid midi",
    "video/mp4": "mp4 m4v",
    "video/webm": "webm",
    "video/ogg": "ogv",
    "video/quicktime": "mov",
    "video/x-matroska": "mkv",
    "video/x-msvideo": "avi",
    "video/mp2t": "ts",
    "application/vnd.apple.mpegurl": "m3u8",
    "application/dash+xml": "mpd",
    # Fonts
    "font/woff2": "woff2",
    "font/woff": "woff",
    "font/ttf": "ttf",
    "font/otf": "otf",
    "font/collection": "ttc",
}


class MediaTypes:
    """The table with a configuration's own entries laid over it."""

    def __init__(self, overrides: Mapping[str, str]) -> None:
        """Take ends of names (``".foo"`` or ``"foo"``; ``""``: names without a dot).

        Raises `ValueError` for a type that is not one.
        """
        self._types = {
            end.encode(): _with_charset(media_type)
            for media_type, ends in TYPES.items()
            for end in ends.split()
        }
        for end, media_type in overrides.items():
            value = media_type.encode("latin-1", "replace")
            if "/" not in media_type or not media_type.isascii() or not is_field_value(value):
                raise ValueError(f"{media_type!r} is not a media type")
            self._types[end.lower().removeprefix(".").encode()] = value

    def of(self, path: bytes) -> bytes:
        """Return the Content-Type for a file of this name."""
        name = path.rpartition(b"/")[2]
        end = name.rpartition(b".")[2] if b"." in name else b""
        return self._types.get(end.lower(), DEFAULT)


def _with_charset(media_type: str) -> bytes:
    if media_type.startswith("text/"):
        media_type += "; charset=utf-8"
    return media_type.encode()
