"""A folder with CGI scripts as a configuration."""

from pathlib import Path

import pytest

from tetrapylon.gateway.config import Config
from tetrapylon.gateway.folders import NoScripts, cgi_tables


def program(file: Path) -> None:
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)


def routes(folder: Path) -> dict[str, str]:
    config = Config.from_dict(cgi_tables(folder), base=folder)
    return {route.path: config.backends[route.backend].kind for route in config.routes}


def test_cgi_bin_and_htbin_run_and_the_rest_is_sent(tmp_path) -> None:
    (tmp_path / "cgi-bin").mkdir()
    program(tmp_path / "tool")
    assert routes(tmp_path) == {"/cgi-bin/": "cgi", "/": "static"}
    (tmp_path / "htbin").mkdir()
    assert routes(tmp_path) == {"/cgi-bin/": "cgi", "/htbin/": "cgi", "/": "static"}


def test_a_folder_of_scripts_is_never_sent(tmp_path) -> None:
    program(tmp_path / "hello")
    (tmp_path / "data.txt").touch()
    assert routes(tmp_path) == {"/": "cgi"}


def test_without_scripts_it_is_refused_with_a_hint(tmp_path) -> None:
    (tmp_path / "sub").mkdir(0o755)
    program(tmp_path / ".hidden")
    with pytest.raises(NoScripts, match="neither cgi-bin/ nor an executable script"):
        cgi_tables(tmp_path)
    (tmp_path / "hello.py").write_text("#!/usr/bin/env python3\n")
    with pytest.raises(NoScripts, match=r"chmod \+x .*hello\.py"):
        cgi_tables(tmp_path)
