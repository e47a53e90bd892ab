"""The default of every limit (bytes or counts) and every time (seconds).

One place, so that a reader sees all that bounds the gateway at a glance. The
tables `[limits]` and `[timeouts]` of the configuration override by the same
names; `docs/configuration.md` says what each is for.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB

# A request's head
REQUEST_LINE_BYTES = 8 * KIB
HEADERS_BYTES = 32 * KIB
HEADER_COUNT = 100
TRAILERS_BYTES = 4 * KIB

# A request's body
BODY_BYTES = 16 * MIB
BODY_RATE_BYTES_PER_S = 500
CHUNK_LINE_BYTES = 256
CHUNK_OVERHEAD_BYTES = 64 * KIB
BODY_BUFFER_BYTES = 64 * KIB
SPOOL_MEMORY_BYTES = 64 * KIB
DRAIN_BYTES = 64 * KIB

# A connection
READ_AHEAD_BYTES = 64 * KIB
SEND_BUFFER_BYTES = 256 * KIB
REQUESTS_PER_CONNECTION = 1000
CONNECTION_AGE_S = 3600.0
BACKLOG = 4096

# A response
RESPONSE_HEADERS_BYTES = 64 * KIB

# Waits of a connection
HEADER_S = 10.0
FIRST_BYTE_S = 10.0
BODY_IDLE_S = 20.0
SEND_IDLE_S = 30.0
KEEP_ALIVE_S = 15.0
HALF_CLOSE_S = 5.0
LINGER_S = 5.0
GRACEFUL_S = 30.0

# Backends
QUEUE_WAIT_S = 5.0
QUEUE = 64
OUTPUT_IDLE_S = 60.0
CGI_TIME_S = 30.0
CGI_KILL_AFTER_S = 2.0
CGI_CHILDREN = 32
CGI_STDERR_BYTES = 64 * KIB
CGI_CPU_S = 30.0
CGI_ADDRESS_SPACE_BYTES = 512 * MIB
CGI_OPEN_FILES = 64
CGI_PROCESSES = 0  # left as it is: it counts all of a user's processes
CGI_FILE_BYTES = 64 * MIB
CGI_CORE_BYTES = 0
LOCAL_REDIRECTS = 10
FASTCGI_CONNECT_S = 2.0
FASTCGI_FIRST_BYTE_S = 30.0
FASTCGI_CONNECTIONS = 32
FASTCGI_IDLE_S = 5.0
FASTCGI_RETRIES = 1
FASTCGI_KILL_AFTER_S = 5.0
FASTCGI_BACKOFF_S = 0.1
WSGI_THREADS = 8
ASGI_FIRST_BYTE_S = 30.0
PROXY_CONNECT_S = 2.0
PROXY_FIRST_BYTE_S = 30.0
PROXY_CONNECTIONS = 64
PROXY_IDLE_S = 4.0

# Files
STATIC_RANGES = 16
