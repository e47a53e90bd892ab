"""The line of every key, and what is said of files that are not TOML."""

import json
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tetrapylon.gateway.config_source import (
    ConfigError,
    Problem,
    Source,
    locate_keys,
    read_toml,
    render_key,
)

DOCUMENT = '''\
title = "x"            # 1
[listen]
bind = [
  "a",                 # 4
  # a comment, "quoted"
  "b",
]
a.b."c d" = 1          # 8

[backends.shop]        # 10
wsgi = "shop:app"
text = """
[not.a.table]
key = 1 \\""" still text
"""
env = { A = "1", B = { C = 2 } }   # 16
literal = \'\'\'
[[routes]]
\'\'\'
when = 1979-05-27 07:32:00         # 20

[[routes]]             # 22
path = "/"
[routes.backend]       # 24
cgi = "x"

[[routes]]             # 27
path = '/#"'
backend = { cgi = "y", list = [ { a = 1 },
   { b = 2 } ] }       # 30
[[routes.inner]]       # 31
q = 1
'''


def test_every_key_has_its_line() -> None:
    tomllib.loads(DOCUMENT)
    lines = locate_keys(DOCUMENT)
    assert lines == {
        ("title",): 1,
        ("listen",): 2,
        ("listen", "bind"): 3,
        ("listen", "bind", 0): 4,
        ("listen", "bind", 1): 6,
        ("listen", "a"): 8,
        ("listen", "a", "b"): 8,
        ("listen", "a", "b", "c d"): 8,
        ("backends",): 10,
        ("backends", "shop"): 10,
        ("backends", "shop", "wsgi"): 11,
        ("backends", "shop", "text"): 12,
        ("backends", "shop", "env"): 16,
        ("backends", "shop", "env", "A"): 16,
        ("backends", "shop", "env", "B"): 16,
        ("backends", "shop", "env", "B", "C"): 16,
        ("backends", "shop", "literal"): 17,
        ("backends", "shop", "when"): 20,
        ("routes",): 22,
        ("routes", 0): 22,
        ("routes", 0, "path"): 23,
        ("routes", 0, "backend"): 24,
        ("routes", 0, "backend", "cgi"): 25,
        ("routes", 1): 27,
        ("routes", 1, "path"): 28,
        ("routes", 1, "backend"): 29,
        ("routes", 1, "backend", "cgi"): 29,
        ("routes", 1, "backend", "list"): 29,
        ("routes", 1, "backend", "list", 0): 29,
        ("routes", 1, "backend", "list", 0, "a"): 29,
        ("routes", 1, "backend", "list", 1): 30,
        ("routes", 1, "backend", "list", 1, "b"): 30,
        ("routes", 1, "inner"): 31,
        ("routes", 1, "inner", 0): 31,
        ("routes", 1, "inner", 0, "q"): 32,
    }


def test_a_key_without_a_line_has_that_of_the_table_around_it() -> None:
    source = Source("f.toml", locate_keys(DOCUMENT))
    assert source.line_of(("backends", "shop", "absent")) == 10
    assert source.line_of(("absent",)) is None
    assert source.place_of(("routes", 1, "absent")) == "f.toml:27"
    assert Source().place_of(("routes", 1)) == ""


_texts = st.text("aB1é\U0001f600 .,=#'\"\\[]{}\t\n\r\x00\x1b", max_size=12)
_values = st.recursive(
    st.one_of(_texts, st.integers(-5, 5), st.booleans()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(_texts, inner, max_size=3)
    ),
    max_leaves=6,
)


def _inline(value: object) -> str:
    """Write a value as TOML on one line; a JSON string is a TOML string."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{_inline(k)}= {_inline(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + " ,".join(map(_inline, value)) + "]"
    # TOML knows no surrogate pairs: everything as it is.
    return json.dumps(value, ensure_ascii=False)


def _paths(value: object, path: tuple[str | int, ...]) -> set[tuple[str | int, ...]]:
    items: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    return {path} | {found for key, item in items for found in _paths(item, (*path, key))}


@settings(deadline=None)
@given(st.dictionaries(_texts, _values, max_size=5))
def test_all_keys_of_any_document_are_found_where_they_were_written(data: dict) -> None:
    text = "".join(f"{_inline(key)} = {_inline(value)}\n" for key, value in data.items())
    assert tomllib.loads(text) == data
    expected = {
        path: line for line, key in enumerate(data, 1) for path in _paths(data[key], (key,))
    }
    assert locate_keys(text) == expected


@pytest.mark.parametrize(
    ("octets", "line", "said"),
    [
        (b"a = 1\nb = text\n", 2, "a text needs quotes"),
        (b"a = 1\n\na = 2\n", 3, "the key is given twice"),
        (b"[a]\n[b]\n[a]\n", 3, "the table is given twice"),
        (b"a = 1\nwhat\n", 2, "a line is key = value"),
        (b"a = [1,\n2\n", 2, "the ']' is missing"),
        (b'a = "x" "y"\n', 1, "one key = value per line"),
        (b"a = 1\nb = '\xff'\n", 2, "not UTF-8"),
    ],
)
def test_what_is_not_toml_is_placed_and_explained(tmp_path, octets, line, said) -> None:
    file = tmp_path / "f.toml"
    file.write_bytes(octets)
    with pytest.raises(ConfigError) as raised:
        read_toml(file)
    (problem,) = raised.value.problems
    assert problem.line == line
    assert str(problem).startswith(f"{file}:{line}: not ")
    assert said in problem.message
    assert "\n" not in problem.message


def test_a_file_nested_too_deeply_is_an_error_of_the_configuration(tmp_path) -> None:
    file = tmp_path / "f.toml"
    file.write_text("a = " + "[" * 20_000)
    with pytest.raises(ConfigError):
        read_toml(file)


def test_an_absent_file_is_an_oserror(tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        read_toml(tmp_path / "none.toml")


def test_a_problem_renders_as_place_key_message() -> None:
    problem = Problem(("backends", "shop", "thread"), "unknown key", "tetrapylon.toml", 12)
    assert str(problem) == "tetrapylon.toml:12: backends.shop.thread: unknown key"
    assert str(Problem(("a",), "wrong")) == "a: wrong"
    assert str(Problem((), "wrong", "f")) == "f: wrong"


def test_keys_render_as_they_would_be_written() -> None:
    assert render_key(("routes", 0, "backend", "env", "a b")) == 'routes[0].backend.env."a b"'
    assert render_key(("a\nb\x1b",)) == '"a\\nb\\x1b"'
