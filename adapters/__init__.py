"""Bridges between CGI, FastCGI, WSGI and ASGI; ASGI is the hub.

Each adapter is an ASGI application (``CgiToAsgi``, ``FastCgiToAsgi``,
``WsgiToAsgi``) and runs under any ASGI server: it knows nothing of the gateway.
"""
