"""docs/configuration.md and the structs say the same, key by key, default by default."""

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tetrapylon.gateway import config, config_backends
from tetrapylon.gateway.config_reading import fields_of, read_value

DOCUMENT = (Path(__file__).parents[2] / "docs/configuration.md").read_text(encoding="utf-8")

SECTIONS: dict[str, type[msgspec.Struct]] = {
    "[listen]": config.Listen,
    "[http]": config.Http,
    "[limits]": config.Limits,
    "[timeouts]": config.Timeouts,
    "[access_log]": config.AccessLog,
    "[python]": config.Python,
    "[[routes]]": config.Route,
    "[static]": config.StaticTable,
    "rlimits": config_backends.ResourceLimits,
    **{kind.kind: kind for kind in config_backends.KINDS},
}
# Read by hand, as their meaning depends on other tables.
BY_HAND = {"[[routes]]": {"backend": "required", "mount": "by kind"}}

_HEADING = re.compile(r"^#{2,4} `(.+)`$", re.MULTILINE)
_ROW = re.compile(r"^\| `(\w+)` \| (.+?) \| (.+) \|$", re.MULTILINE)


def _documented() -> dict[str, dict[str, str]]:
    parts = _HEADING.split(DOCUMENT)
    # The last section goes on to the end of the page, which has no more tables.
    return {
        heading: {key: default for key, default, _ in _ROW.findall(text)}
        for heading, text in zip(parts[1::2], parts[2::2], strict=True)
    }


DOCUMENTED = _documented()


def _examples() -> list[str]:
    return re.findall(r"^```toml\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


def test_every_table_has_its_section() -> None:
    assert {heading for heading, rows in DOCUMENTED.items() if rows} == set(SECTIONS)
    # … and every table of the file is one of these, or a kind's.
    kinds = {kind.kind for kind in config_backends.KINDS}
    assert set(fields_of(config.Config)) <= kinds | {heading.strip("[]") for heading in SECTIONS}


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_key_is_documented_and_no_other(heading) -> None:
    keys = set(fields_of(SECTIONS[heading])) | set(BY_HAND.get(heading, {}))
    if heading == "[static]":
        # What else it can say is each backend's, and in its section.
        keys -= set(fields_of(config_backends.Static))
    assert set(DOCUMENTED[heading]) == keys


@pytest.mark.parametrize(
    ("heading", "key"), [(heading, key) for heading in SECTIONS for key in DOCUMENTED[heading]]
)
def test_every_default_is_the_documented_one(heading, key) -> None:
    said = DOCUMENTED[heading][key]
    if key in BY_HAND.get(heading, {}):
        assert said == BY_HAND[heading][key]
        return
    struct = SECTIONS[heading]
    attribute, annotation = fields_of(struct)[key]
    field = next(field for field in msgspec.structs.fields(struct) if field.name == attribute)
    default: Any = field.default
    if field.default_factory is not msgspec.NODEFAULT:
        default = field.default_factory()
    if said == "required":
        assert field.required
    elif said == "none":
        assert default in (None, ())
    else:
        value = tomllib.loads(f"value = {said.strip('`')}")["value"]
        if isinstance(default, msgspec.Struct):
            assert value == {}
            assert default == type(default)()
        else:
            assert read_value(annotation, value, Path("/")) == default


@pytest.mark.parametrize("text", _examples())
def test_every_example_is_a_configuration(tmp_path, text) -> None:
    for name in ("public", "blog", "cgi-bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "program").touch(0o755)
    file = tmp_path / "tetrapylon.toml"
    file.write_text(text)
    assert config.load(file).routes


def test_the_messages_shown_are_those_given(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = dict.fromkeys(range(1, 20), "")
    rows |= {10: "[backends.shop]", 11: "wsgi = 'm:a'", 12: "thread = 1"}
    rows |= {14: "[[routes]]", 15: "path = '/blog/'", 16: "backend = 'shop'"}
    rows |= {18: "[[routes]]", 19: "path = '/blog'", 20: "backend = 'shop'"}
    Path("tetrapylon.toml").write_text("\n".join(rows.values()))
    with pytest.raises(config.ConfigError) as raised:
        config.load("tetrapylon.toml")
    assert f"{raised.value}\n2 errors" in DOCUMENT
