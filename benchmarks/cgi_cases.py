"""CGI: the same scripts behind this gateway and its peers.

Everything has the whole machine, as CGI has it: a request is a process, and the
server's own part of it is small.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from measuring import Case, Mark
from peers import gateway_cgi, program
from web_servers import CGID, FCGIWRAP, LIGHTTPD

TITLE = "CGI"
HERE = Path(__file__).resolve().parent
WARM = "tetrapylon, warm"
PEERS = (LIGHTTPD, CGID, FCGIWRAP)
RIVALS = tuple(peer.name for peer in PEERS)
PLAIN = (gateway_cgi(), *PEERS)
BOTH = (gateway_cgi(WARM, ", warm = true"), *PLAIN)

GITWEB = ("/usr/share/gitweb/gitweb.cgi", "/usr/lib/cgi-bin/gitweb.cgi")
GITWEB_CONFIG = """\
our $projectroot = "%s";
our $my_url = "/cgi-bin/gitweb.cgi";
our $my_uri = "/cgi-bin/gitweb.cgi";
our $base_url = "/cgi-bin/gitweb.cgi";
our $site_name = "Repositories";
our $home_link = "/cgi-bin/gitweb.cgi";
1;
"""
COMMITS = 40


def _script(name: str) -> Path:
    return HERE / "scripts" / name


def write_c(scripts: Path) -> None:
    """Compile the program."""
    command = ["gcc", "-O2", "-o", str(scripts / "hello"), str(_script("hello.c"))]
    subprocess.run(command, check=True, timeout=60)


def write_python(scripts: Path) -> None:
    """Copy the Python scripts."""
    for name in ("trivial.py", "imports.py"):
        shutil.copy(_script(name), scripts)


def write_perl(scripts: Path) -> None:
    """Copy the Perl script."""
    shutil.copy(_script("form.pl"), scripts)


def write_gitweb(scripts: Path) -> None:
    """Copy gitweb, and make a repository whose summary it shows."""
    projects = scripts.parent / "projects"
    projects.mkdir()
    repository = projects / "house.git"
    config = scripts.parent / "gitweb.conf"
    config.write_text(GITWEB_CONFIG % projects)
    # Its place is built in, as gitweb's own Makefile does it.
    source = Path(next(path for path in GITWEB if os.path.exists(path))).read_text()
    script = scripts / "gitweb.cgi"
    script.write_text(source.replace('"gitweb_config.perl"', f'"{config}"'))
    script.chmod(0o755)
    environ = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(projects)}
    options = {"env": environ, "check": True, "timeout": 60}
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(repository)], **options)
    subprocess.run(
        ["git", "-C", str(repository), "fast-import", "--quiet"], input=_history(), **options
    )
    (repository / "description").write_text("A house with four ways through\n")


def _history() -> bytes:
    """Return commits and tags for git fast-import; years ago, so that ages stay the same."""
    parts = []
    for number in range(COMMITS):
        who = f"Vitruvius <vitruvius@example.org> {1_500_000_000 + 86_400 * number} +0000"
        message = f"Lay stone {number}\n\nUpon the others.\n"
        content = "".join(f"line {line} of stone {number}\n" for line in range(50))
        parts.append(
            f"commit refs/heads/main\nauthor {who}\ncommitter {who}\n"
            f"data {len(message)}\n{message}"
            f"M 100644 inline stones/{number % 10}.txt\ndata {len(content)}\n{content}\n"
        )
        if number % 8 == 7:
            parts.append(f"tag v{number // 8}\nfrom refs/heads/main\ntagger {who}\ndata 5\nstone\n")
    return "".join(parts).encode()


def _has(*programs: str) -> str | None:
    missing = [name for name in programs if program(name) is None]
    return f"needs {', '.join(missing)}" if missing else None


def _has_cgi_pm() -> str | None:
    done = subprocess.run(["perl", "-MCGI", "-e", "1"], capture_output=True, check=False)
    return "needs CGI.pm (Debian: libcgi-pm-perl)" if done.returncode else None


def _has_gitweb() -> str | None:
    if not any(map(os.path.exists, GITWEB)):
        return "needs gitweb (Debian: gitweb)"
    return _has("git", "perl") or _has_cgi_pm()


CASES = [
    Case(
        "cgi c",
        "A C program",
        PLAIN,
        path="/cgi-bin/hello",
        marks=(
            Mark(0.9, (LIGHTTPD.name,)),
            Mark(1.2, (CGID.name,)),
            Mark(1.0, (FCGIWRAP.name,)),
        ),
        prepare=write_c,
        needs=lambda: _has("gcc"),
    ),
    Case(
        "cgi python",
        "A trivial Python script",
        BOTH,
        path="/cgi-bin/trivial.py",
        marks=(Mark(2, RIVALS, WARM),),
        prepare=write_python,
    ),
    Case(
        "cgi python imports",
        "A Python script with fifteen imports",
        BOTH,
        path="/cgi-bin/imports.py?name=Vitruvius",
        marks=(Mark(8, RIVALS, WARM),),
        prepare=write_python,
    ),
    Case(
        "cgi perl",
        "A Perl script with CGI.pm",
        BOTH,
        path="/cgi-bin/form.pl?name=Vitruvius",
        marks=(Mark(6, RIVALS, WARM),),
        prepare=write_perl,
        needs=lambda: _has("perl") or _has_cgi_pm(),
    ),
    Case(
        "cgi gitweb",
        "gitweb's summary of a repository",
        BOTH,
        path="/cgi-bin/gitweb.cgi?p=house.git;a=summary",
        marks=(Mark(2, RIVALS, WARM),),
        prepare=write_gitweb,
        needs=_has_gitweb,
    ),
]
