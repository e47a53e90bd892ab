"""The WSGI application of ``flup_application.py`` on flup's SCGI servers.

`python flup_scgi.py threaded|forked PATH` listens on a unix socket.
"""

from __future__ import annotations

import importlib
import sys
from wsgiref.validate import validator

from flup_application import application

SERVERS = {
    "threaded": ("flup.server.scgi", {"maxSpare": 4}),
    "forked": ("flup.server.scgi_fork", {"minSpare": 2, "maxSpare": 3}),
}

if __name__ == "__main__":
    module, options = SERVERS[sys.argv[1]]
    server = importlib.import_module(module)
    server.WSGIServer(validator(application), bindAddress=sys.argv[2], **options).run()
