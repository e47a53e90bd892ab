"""Whom children run as, and that root must say so."""

import os
import pwd
from pathlib import Path

import pytest

from tetrapylon.gateway import users
from tetrapylon.gateway.assembly import StartFailure, assemble
from tetrapylon.gateway.config import Config, load
from tetrapylon.gateway.spawn.confinement import User, child_user
from tetrapylon.gateway.users import Names, NobodyFits, missing_users, user_for, with_user

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root chooses a user")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "cgi-bin").mkdir()
    return tmp_path


@pytest.fixture
def root(monkeypatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def config_of(base: Path, **backends: dict) -> Config:
    routes = [{"path": f"/{name}/", "backend": name} for name in backends]
    return Config.from_dict({"backends": backends, "routes": routes}, base=base)


# What root must say


def test_root_must_say_whom_scripts_and_spawned_applications_run_as(site, root) -> None:
    file = site / "tetrapylon.toml"
    file.write_text(
        '[backends.app]\nspawn = ["sh"]\n[backends.php]\nfastcgi = "unix:php.sock"\n'
        '[[routes]]\npath = "/cgi-bin/"\nbackend = { cgi = "cgi-bin" }\n'
        '[[routes]]\npath = "/app/"\nbackend = "app"\n'
        '[[routes]]\npath = "/php/"\nbackend = "php"\n'
    )
    config = load(file)
    missing = dict(missing_users(config))
    assert set(missing) == {f"{file}:1", f"{file}:7"}
    text = missing[f"{file}:7"]
    assert "backend /cgi-bin/: started as root" in text
    assert "here or in [cgi]" in text
    assert 'user = "root" if that is really meant' in text
    with pytest.raises(StartFailure, match=r"tetrapylon\.toml:1: backend app.*\n.*:7: "):
        assemble(config)


@pytest.mark.parametrize("user", ["nobody", "root"])
def test_what_says_it_starts(site, root, user) -> None:
    assert not [*missing_users(config_of(site, a={"cgi": "cgi-bin", "user": user}))]
    tables = {
        "cgi": {"user": user},
        "routes": [{"path": "/", "backend": {"cgi": "cgi-bin"}}],
    }
    assert not [*missing_users(Config.from_dict(tables, base=site))]


def test_others_need_not_say_it(site, monkeypatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    config = config_of(site, a={"cgi": "cgi-bin"}, b={"spawn": ["sh"]})
    assert not [*missing_users(config)]


def test_a_default_is_for_those_that_say_nothing(site, root) -> None:
    config = with_user(
        config_of(
            site,
            a={"cgi": "cgi-bin"},
            b={"cgi": "cgi-bin", "user": "root"},
            c={"spawn": ["sh"]},
            d={"static": "."},
            e={"fastcgi": "unix:x.sock"},
        ),
        Names("nobody"),
    )
    said = {name: getattr(spec, "user", None) for name, spec in config.backends.items()}
    assert said == {"a": "nobody", "b": "root", "c": "nobody", "d": None, "e": None}
    assert not [*missing_users(config)]


# What the names mean


def test_whoever_is_named_exists(site) -> None:
    own = pwd.getpwuid(os.geteuid())
    assert User.find(own.pw_name).uid == own.pw_uid
    assert User.find(str(own.pw_uid)) == User.find(own.pw_name)
    with pytest.raises(LookupError, match="no such user: 'no-such'"):
        User.find("no-such")
    with pytest.raises(LookupError, match="no such group: 'no-such'"):
        User.find(own.pw_name, "no-such")


def test_a_number_without_a_name_needs_a_group() -> None:
    assert User.find("4123456", "4123457") == User(4123456, 4123457, (4123457,))
    with pytest.raises(LookupError, match="name the group, too"):
        User.find("4123456")


def test_to_be_oneself_is_to_stay_oneself(monkeypatch) -> None:
    entry = pwd.getpwnam("nobody")
    monkeypatch.setattr(os, "geteuid", lambda: entry.pw_uid)
    monkeypatch.setattr(os, "getegid", lambda: entry.pw_gid)
    assert child_user(None) is None
    assert child_user("nobody") is None
    assert child_user("nobody", str(entry.pw_gid)) is None
    with pytest.raises(ValueError, match="children run as root"):
        child_user("root")
    with pytest.raises(ValueError, match="children run as nobody:0"):
        child_user("nobody", "0")


def test_root_becomes_anybody(root) -> None:
    assert child_user("root") == User.find("root")
    assert child_user("nobody") == User.find("nobody")


# For a folder


@as_root
def test_a_folder_s_scripts_run_as_its_owner(tmp_path) -> None:
    nobody = pwd.getpwnam("nobody")
    os.chown(tmp_path, nobody.pw_uid, nobody.pw_gid)
    assert user_for(tmp_path) == Names("nobody")
    os.chown(tmp_path, 4123456, 4123457)
    assert user_for(tmp_path) == Names("4123456", "4123457")


@as_root
def test_root_s_folder_is_for_somebody_without_rights(tmp_path, monkeypatch) -> None:
    names = user_for(Path("/usr"))
    assert names is not None
    assert pwd.getpwnam(names.user).pw_uid != 0
    tmp_path.chmod(0o700)
    with pytest.raises(NobodyFits, match="nobody else can read it"):
        user_for(tmp_path)
    monkeypatch.setattr(users, "_UNPRIVILEGED", ())
    with pytest.raises(NobodyFits):
        user_for(Path("/usr"))


def test_who_is_not_root_stays_themselves(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert user_for(tmp_path) is None
