"""Which Perl scripts may run warm, from what is seen from outside; nothing is run."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tetrapylon.gateway.spawn.interpreters import Eligible, Interpreter, NotEligible
from tetrapylon.gateway.spawn.warm_perl import examine

ENVIRON = {
    b"LANG": b"C.UTF-8",
    b"DOCUMENT_ROOT": b"/srv",
    b"QUERY_STRING": b"a=1",
    b"HTTP_HOST": b"example.com",
    b"HTTPS": b"on",
    b"REMOTE_ADDR": b"192.0.2.1",
}


def elf(machine: int, bits: int, *, is_little: bool = True) -> bytes:
    """Return the beginning of a program for a machine."""
    number = machine.to_bytes(2, "little" if is_little else "big")
    return b"\x7fELF" + bytes((bits // 32, 1 if is_little else 2)) + bytes(12) + number


@pytest.fixture
def perl(tmp_path: Path) -> Path:
    program = tmp_path / "perl"
    program.write_bytes(elf(62, 64))
    return program


def look(
    perl: Path,
    *flags: str,
    line: str = "#!/usr/bin/perl",
    environ: dict[bytes, bytes] = ENVIRON,
    is_direct: bool = True,
    name: str = "/usr/bin/perl",
    mode: int = 0o755,
) -> Eligible | NotEligible:
    """Examine a script with that first line."""
    script = perl.parent / "script.pl"
    script.write_text(f"{line}\nprint 1;\n")
    script.chmod(mode)
    return examine(Interpreter(str(perl), name, flags, is_direct), str(script), environ)


def kept(found: Eligible | NotEligible) -> Eligible:
    assert isinstance(found, Eligible), found
    return found


def test_the_template(perl: Path) -> None:
    found = kept(look(perl, "-wT", line="#!/usr/bin/perl -wT"))
    name, flags, folder, module, script = found.argv
    assert (name, flags, script) == ("/usr/bin/perl", "-wT", str(perl.parent / "script.pl"))
    assert found.program == str(perl)
    assert re.fullmatch(r"-mperl_template=x86_64,[0-9a-f]{56},named", module)
    assert os.path.exists(os.path.join(folder[2:], "perl_template.pm"))
    assert os.path.exists(os.path.join(folder[2:], "perl_probe.pl"))


@pytest.mark.parametrize(
    "flags",
    ["", "-w", "-T", "-wT", "-w -T", "-CSD", "-C7 -w", "-MCGI=:all -w", "-I/srv/lib -w", "-0777 -n",
     "-l012", "-lan -F: -W", "-X", "-t", "-Mstrict -mPOSIX", "-- -w", "-w\r"],
)  # fmt: skip
def test_flags_that_are_kept(perl: Path, flags: str) -> None:
    kept(look(perl, *([flags] if flags else []), line=f"#!/usr/bin/perl {flags}"))


@pytest.mark.parametrize(
    ("flags", "which"),
    [("-d", "d"), ("-d:NYTProf", "d"), ("-wd", "d"), ("-i.bak", "i"), ("-s", "s"), ("-x", "x"),
     ("-S", "S"), ("-c", "c"), ("-v", "v"), ("-V", "V"), ("-h", "h"), ("-u", "u"), ("-U", "U"),
     ("-Dt", "D"), ("-e 1", "e"), ("-w -s", "s"), ("-0777 -i", "i"), ("-CS -d", "d")],
)  # fmt: skip
def test_flags_that_are_not(perl: Path, flags: str, which: str) -> None:
    reason = f"the flag -{which} of Perl"
    assert look(perl, flags) == NotEligible(reason)
    # Perl reads the line itself, whoever started it.
    table = look(perl, line=f"#!/usr/bin/perl {flags}", is_direct=False, name=str(perl))
    assert table == NotEligible(reason)
    options = ENVIRON | {b"PERL5OPT": flags.encode()}
    assert look(perl, environ=options) == NotEligible(reason)


def test_first_line_of_another_program(perl: Path) -> None:
    """Perl would execute that."""
    assert look(perl, line="#!/bin/sh", is_direct=False) == NotEligible(
        "its #! line names another program than Perl"
    )
    kept(look(perl, line="use strict;", is_direct=False))


def test_edits_are_seen(perl: Path) -> None:
    first = kept(look(perl))
    assert isinstance(look(perl, line="#!/usr/bin/perl -d", is_direct=False), NotEligible)
    assert kept(look(perl, line="#!/usr/bin/perl -w")).identity != first.identity


def test_set_uid(perl: Path) -> None:
    assert look(perl, mode=0o4755) == NotEligible("it is set-uid or set-gid")
    assert look(perl, mode=0o2755) == NotEligible("it is set-uid or set-gid")


@pytest.mark.parametrize(
    ("machine", "bits", "is_little", "name"),
    [(62, 64, True, "x86_64"), (183, 64, True, "aarch64"), (243, 64, True, "riscv64"),
     (21, 64, True, "ppc64le"), (22, 64, False, "s390x"), (3, 32, True, "i386"),
     (40, 32, True, "armhf"), (62, 32, True, None), (21, 64, False, None), (8, 32, False, None)],
)  # fmt: skip
def test_machines(
    tmp_path: Path, machine: int, bits: int, is_little: bool, name: str | None
) -> None:
    perl = tmp_path / "perl"
    perl.write_bytes(elf(machine, bits, is_little=is_little))
    found = look(perl, is_direct=False)
    if name is None:
        assert found == NotEligible(f"{perl} is for a machine without warm Perl")
    else:
        assert any(f"-mperl_template={name}," in word for word in kept(found).argv)


def test_no_machine(tmp_path: Path) -> None:
    perl = tmp_path / "perl"
    perl.write_text("#!/bin/sh\n")
    assert isinstance(look(perl), NotEligible)


def test_missing(perl: Path) -> None:
    with pytest.raises(FileNotFoundError):
        examine(Interpreter(str(perl), "perl", (), True), str(perl.parent / "none.pl"), {})


def test_environment_of_the_template(perl: Path) -> None:
    """What is the same for all requests, so far as has been seen."""
    same = {b"LANG": b"C.UTF-8", b"DOCUMENT_ROOT": b"/srv"}
    assert dict(kept(look(perl)).environ) == same
    other = ENVIRON | {b"QUERY_STRING": b"b", b"HTTP_ACCEPT": b"x", b"USER_OF_LATER": b"u"}
    assert dict(kept(look(perl, environ=other)).environ) == same
    # A language is never the same for all: each has its template.
    german = kept(look(perl, environ=ENVIRON | {b"LANG": b"de_DE.UTF-8"}))
    assert dict(german.environ) == same | {b"LANG": b"de_DE.UTF-8"}
    # What was seen to vary is left out for good.
    for root in (b"/other", b"/srv"):
        found = kept(look(perl, environ=ENVIRON | {b"DOCUMENT_ROOT": root}))
        assert dict(found.environ) == {b"LANG": b"C.UTF-8"}


def test_environments_of_many_scripts(perl: Path) -> None:
    """What is remembered of them is bounded, and forgotten without harm."""
    interpreter = Interpreter(str(perl), "/usr/bin/perl", (), True)
    script = perl.parent / "script.pl"
    script.write_text("#!/usr/bin/perl\n")
    for number in range(1100):
        link = perl.parent / f"{number}.pl"
        link.symlink_to(script)
        found = kept(examine(interpreter, str(link), ENVIRON))
        assert dict(found.environ) == {b"LANG": b"C.UTF-8", b"DOCUMENT_ROOT": b"/srv"}
