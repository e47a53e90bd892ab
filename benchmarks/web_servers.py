"""The servers that stand beside this one, each set up as its good administrator would.

All have the workers that their documentation advises for the cores they get. Comments
say what is not the default.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from peers import Peer, Place, all_of, needed, program, says, write
from processes import Group

APACHE_MODULES = ("/usr/lib/apache2/modules", "/usr/lib64/httpd/modules", "/usr/lib/httpd/modules")

# lighttpd


def _lighttpd_cgi(group: Group, place: Place) -> None:
    config = f"""
server.document-root = "{place.folder}"
server.bind = "127.0.0.1"
server.port = {place.port}
server.modules = ( "mod_alias", "mod_cgi" )
server.errorlog = "{place.folder}/error.log"
server.max-keep-alive-requests = 65535
alias.url = ( "/cgi-bin/" => "{place.scripts}/" )
$HTTP["url"] =~ "^/cgi-bin/" {{
  cgi.assign = ( "" => "" )
}}
"""
    file = write(place, "lighttpd.conf", config)
    group.start([needed("lighttpd"), "-D", "-f", str(file)], address=place.port)


# Apache

APACHE = """
ServerRoot "{folder}"
DefaultRuntimeDir "{folder}"
PidFile "{folder}/httpd.pid"
ServerName localhost
Listen 127.0.0.1:{port}
ErrorLog "{folder}/error.log"
LogLevel warn
{modules}
KeepAlive On
MaxKeepAliveRequests 0
{workers}
DocumentRoot "{scripts}"
<Directory "{scripts}">
  Require all granted
</Directory>
"""
# For the whole machine: Debian's own (mods-available/mpm_event.conf).
APACHE_MACHINE = """
StartServers 2
MinSpareThreads 25
MaxSpareThreads 75
ThreadLimit 64
ThreadsPerChild 25
MaxRequestWorkers 150
"""
# For one core: one process with a thread for each connection, so that kept connections
# to the application are shared by all.
APACHE_CORE = """
ServerLimit 1
StartServers 1
ThreadLimit {threads}
ThreadsPerChild {threads}
MaxRequestWorkers {threads}
MinSpareThreads 1
MaxSpareThreads {threads}
"""


def _start_apache(
    group: Group, place: Place, modules: tuple[str, ...], workers: str, more: str
) -> None:
    folder = next(path for path in APACHE_MODULES if os.path.isdir(path))
    names = ("mpm_event", "authz_core", "unixd", *modules)
    lines = [
        f"LoadModule {name}_module {folder}/mod_{name}.so"
        for name in names
        if os.path.exists(f"{folder}/mod_{name}.so")  # Debian has unixd built in
    ]
    config = APACHE.format(
        folder=place.folder,
        port=place.port,
        scripts=place.scripts,
        workers=workers,
        modules="\n".join(lines),
    )
    file = write(place, "httpd.conf", config + more)
    command = [needed("apache2", "httpd"), "-D", "FOREGROUND", "-f", str(file)]
    group.start(command, address=place.port)


def _apache_cgid(group: Group, place: Place) -> None:
    more = f"""
ScriptSock "{place.folder}/cgid.sock"
ScriptAlias "/cgi-bin/" "{place.scripts}/"
"""
    _start_apache(group, place, ("alias", "cgid"), APACHE_MACHINE, more)


def _apache_fastcgi(proxy: str) -> Callable[[Group, Place], None]:
    def start(group: Group, place: Place) -> None:
        parameters = proxy.format(connections=place.connections)
        more = f"""
<Proxy "fcgi://php/" {parameters}>
</Proxy>
<FilesMatch "\\.php$">
  SetHandler "proxy:unix:{place.application}|fcgi://php/"
</FilesMatch>
"""
        # Twice: where all threads are busy, Apache closes kept connections of clients.
        workers = APACHE_CORE.format(threads=2 * max(64, place.connections))
        _start_apache(group, place, ("proxy", "proxy_fcgi"), workers, more)

    return start


# nginx

NGINX = """
daemon off;
worker_processes {workers};
pid {folder}/nginx.pid;
error_log {folder}/error.log error;
events {{
  worker_connections 1024;
}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  fastcgi_temp_path {folder}/fastcgi;
  proxy_temp_path {folder}/proxy;
  scgi_temp_path {folder}/scgi;
  uwsgi_temp_path {folder}/uwsgi;
  keepalive_requests 1000000;
  open_file_cache max=1000;
  upstream application {{
    server unix:{socket};
    {keep}
  }}
  server {{
    listen 127.0.0.1:{port};
    root {root};
    location {location} {{
      fastcgi_pass application;
      {more}
      fastcgi_param QUERY_STRING $query_string;
      fastcgi_param REQUEST_METHOD $request_method;
      fastcgi_param CONTENT_TYPE $content_type;
      fastcgi_param CONTENT_LENGTH $content_length;
      fastcgi_param SCRIPT_FILENAME {filename};
      fastcgi_param SCRIPT_NAME $fastcgi_script_name;
      fastcgi_param REQUEST_URI $request_uri;
      fastcgi_param DOCUMENT_URI $document_uri;
      fastcgi_param DOCUMENT_ROOT $document_root;
      fastcgi_param SERVER_PROTOCOL $server_protocol;
      fastcgi_param REQUEST_SCHEME $scheme;
      fastcgi_param GATEWAY_INTERFACE CGI/1.1;
      fastcgi_param SERVER_SOFTWARE nginx/$nginx_version;
      fastcgi_param REMOTE_ADDR $remote_addr;
      fastcgi_param REMOTE_PORT $remote_port;
      fastcgi_param SERVER_ADDR $server_addr;
      fastcgi_param SERVER_PORT $server_port;
      fastcgi_param SERVER_NAME $server_name;
      fastcgi_param REDIRECT_STATUS 200;
    }}
  }}
}}
"""


def _start_nginx(group: Group, place: Place, **values: str) -> None:
    config = NGINX.format(folder=place.folder, port=place.port, **values)
    file = write(place, "nginx.conf", config)
    command = [needed("nginx"), "-c", str(file), "-e", str(place.folder / "error.log")]
    group.start(command, address=place.port)


def _nginx_fcgiwrap(group: Group, place: Place) -> None:
    # A worker of fcgiwrap for each connection.
    socket = place.folder / "fcgiwrap.sock"
    command = [needed("fcgiwrap"), "-c", str(place.connections), "-s", f"unix:{socket}"]
    group.start(command, address=socket)
    _start_nginx(
        group,
        place,
        workers="auto",
        socket=str(socket),
        keep=f"keepalive {place.connections}; keepalive_requests 1000000;",
        root=str(place.folder),
        location="/cgi-bin/",
        filename=f"{place.scripts.parent}$fastcgi_script_name",
        more="fastcgi_keep_conn on;",
    )


def _nginx_fastcgi(group: Group, place: Place) -> None:
    _start_nginx(
        group,
        place,
        workers="1",
        socket=str(place.application),
        keep=f"keepalive {place.connections}; keepalive_requests 1000000;",
        root=str(place.scripts),
        location="~ \\.php$",
        filename="$document_root$fastcgi_script_name",
        more="try_files $fastcgi_script_name =404; fastcgi_keep_conn on;",
    )


# Caddy


def _caddy_fastcgi(group: Group, place: Place) -> None:
    config = f"""
{{
  admin off
  auto_https off
  storage file_system {place.folder}/storage
  log {{
    level ERROR
  }}
}}
http://127.0.0.1:{place.port} {{
  root * {place.scripts}
  php_fastcgi unix/{place.application}
}}
"""
    file = write(place, "Caddyfile", config)
    command = [needed("caddy"), "run", "--config", str(file), "--adapter", "caddyfile"]
    group.start(command, address=place.port, env={"GOMAXPROCS": "1"})


# php-fpm

PHP_NAMES = ("php-fpm", "php-fpm8.4", "php-fpm8.3", "php-fpm8.2", "php-fpm8.1")


def php_version() -> str | None:
    """Return php-fpm's version, or None if it is not installed."""
    path = program(*PHP_NAMES)
    return says(path, "-v")() if path is not None else None


def start_php(group: Group, folder: Path, *, children: int) -> Path:
    """Start a php-fpm of a fixed number of children; return its socket."""
    socket = folder / "php.sock"
    file = folder / "php-fpm.conf"
    file.write_text(f"""
[global]
daemonize = no
pid = {folder}/php-fpm.pid
error_log = {folder}/php-fpm.log
[www]
listen = {socket}
pm = static
pm.max_children = {children}
""")
    command = [needed(*PHP_NAMES), "--nodaemonize", "--fpm-config", str(file)]
    group.start(command, address=socket)
    return socket


# All of them

NGINX_VERSION = says("nginx", "-v")
APACHE_VERSION = says(program("apache2", "httpd") or "apache2", "-v")

LIGHTTPD = Peer("lighttpd mod_cgi", "apt install lighttpd", says("lighttpd", "-v"), _lighttpd_cgi)
CGID = Peer("Apache mod_cgid", "apt install apache2-bin", APACHE_VERSION, _apache_cgid)
FCGIWRAP = Peer(
    "nginx + fcgiwrap",
    "apt install nginx-light fcgiwrap",
    all_of(NGINX_VERSION, says("fcgiwrap", "-h")),
    _nginx_fcgiwrap,
)
FASTCGI_NGINX = Peer("nginx", "apt install nginx-light", NGINX_VERSION, _nginx_fastcgi)
# Without kept connections it is as distributions set it up, and Apache by default.
FASTCGI_APACHE = Peer(
    "Apache mod_proxy_fcgi",
    "apt install apache2-bin",
    APACHE_VERSION,
    _apache_fastcgi("disablereuse=on"),
)
FASTCGI_APACHE_KEPT = Peer(
    "Apache, enablereuse=on",
    "apt install apache2-bin",
    APACHE_VERSION,
    _apache_fastcgi("enablereuse=on max={connections}"),
)
FASTCGI_CADDY = Peer("Caddy", "apt install caddy", says("caddy", "version"), _caddy_fastcgi)
