"""Adminer and DokuWiki in Chromium: php-cgi that the gateway runs, php-fpm that it finds."""

from __future__ import annotations

import contextlib
import getpass
import grp
import os
import shutil
import sqlite3
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.interop

FPM_NAMES = [f"php-fpm8.{minor}" for minor in range(9, 0, -1)]
POOL = """
[global]
error_log = {folder}/fpm.log
daemonize = no
[www]
listen = {listen}
{identity}
pm = dynamic
pm.max_children = 4
pm.start_servers = 2
pm.min_spare_servers = 1
pm.max_spare_servers = 3
php_value[session.save_path] = {folder}
php_value[auto_prepend_file] = {folder}/prepend.php
php_value[upload_max_filesize] = 16M
php_value[post_max_size] = 16M
"""


def picture(width: int, height: int) -> bytes:
    """Return a PNG of noise, which does not compress."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = b"".join(b"\0" + os.urandom(3 * width) for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows, 1))
        + chunk(b"IEND", b"")
    )


@pytest.fixture
def adminer(recipe: Any, gateway: Any, find_program: Any, tmp_path: Path) -> Any:
    """Adminer as its recipe has it, and a database."""
    find_program("php-cgi", package="php-cgi")
    page = recipe("Adminer", tmp_path)
    page.run()
    with contextlib.closing(sqlite3.connect(tmp_path / "srv/adminer/house.db")) as database:
        database.execute("CREATE TABLE guest (id INTEGER PRIMARY KEY, name TEXT)")
        database.executemany("INSERT INTO guest (name) VALUES (?)", [("Zoë & <co>",), ("Ann",)])
        database.commit()
    return gateway(page.configuration)


def test_adminer(adminer: Any, browser: Any, tmp_path: Path) -> None:
    database = tmp_path / "srv/adminer/house.db"

    def log_in(password: str) -> None:
        browser.run(
            "const driver = document.querySelector('[name=\"auth[driver]\"]');"
            "driver.value = 'sqlite'; driver.dispatchEvent(new Event('change'));"
            "document.querySelector('[name=\"auth[db]\"]').value = arguments[0];",
            str(database),
        )
        browser.write('[name="auth[password]"]', password)
        browser.click("form [type=submit][value=Login]")

    browser.open(f"{adminer.url}/adminer/")
    log_in("a wrong one")
    assert "does not support password" in browser.wait_for(
        "return document.querySelector('.error')?.innerText"
    )
    # Adminer's own answer to a wrong password is a 403: the one complaint there may be.
    (complaint,) = browser.complaints()
    assert "403" in complaint
    assert len(browser.failed_loads()) == 1

    log_in("open sesame")
    assert "guest" in browser.wait_for("return document.querySelector('#tables')?.innerText")
    # Its style sheet and scripts are pages of its own, too.
    colour = "return getComputedStyle(document.querySelector('h2')).backgroundColor"
    assert browser.run(colour) == "rgb(221, 221, 255)"
    browser.click("#tables a[title='Select data']")
    rows = browser.wait_for("return document.querySelector('#table')?.innerText")
    assert "Zoë & <co>" in rows

    browser.open(browser.url.replace("&select=guest", "&edit=guest"))
    browser.write('[name="fields[name]"]', "Ünal “& co”")
    browser.click("form [type=submit][value=Save]")
    browser.wait_for("return document.querySelector('.message')?.innerText.includes('inserted')")
    with contextlib.closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT name FROM guest WHERE id = 3").fetchall() == [
            ("Ünal “& co”",)
        ]

    # Two files at once, of which one is larger than what stays in memory.
    files = [tmp_path / "one.sql", tmp_path / "two.sql"]
    files[0].write_text("CREATE TABLE wall (id INTEGER, stone TEXT);\n")
    stones = [f"({number}, '{'stone ' * 200}')" for number in range(2000)]
    files[1].write_text(f"INSERT INTO wall VALUES {', '.join(stones)};\n")
    assert files[1].stat().st_size > 2_000_000
    browser.open(browser.url.partition("&select=")[0] + "&import=")
    browser.write('[name="sql_file[]"]', "\n".join(map(str, files)))
    browser.click("form [type=submit][value=Execute]")
    browser.wait_for("return document.body.innerText.includes('2 queries executed OK')")
    with contextlib.closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT count(*) FROM wall").fetchone() == (2000,)

    # All of it back, as a download by the page's own cookie.
    exported = browser.run(
        "const form = new URLSearchParams({output: 'text', format: 'sql', db_style: '',"
        " table_style: 'DROP+CREATE', data_style: 'INSERT', 'tables[]': 'wall', 'data[]': 'wall',"
        " token: document.querySelector('[name=token]').value});"
        "return fetch(arguments[0], {method: 'POST', body: form}).then((got) => got.text());",
        browser.url.replace("&import=", "&dump="),
    )
    assert exported.count("stone " * 200) == 2000
    browser.click("[name=logout]")
    browser.wait_for("return document.querySelector('[name=\"auth[password]\"]') !== null")
    assert browser.complaints() == []
    assert browser.failed_loads() == []


@pytest.fixture
def dokuwiki(
    recipe: Any, gateway: Any, find_program: Any, start_server: Any, tmp_path: Path
) -> Any:
    """DokuWiki as its recipe has it: Debian's files, with settings and pages of this test."""
    program = find_program("php-fpm", *FPM_NAMES, package="php-fpm")
    assert Path("/usr/share/dokuwiki").is_dir(), "apt install dokuwiki"
    settings, library = tmp_path / "etc/dokuwiki", tmp_path / "var/lib/dokuwiki"
    unreadable = shutil.ignore_patterns("*.auth.php", "local.php")
    shutil.copytree("/etc/dokuwiki", settings, ignore=unreadable)
    shutil.copytree(
        "/var/lib/dokuwiki/lib", library / "lib", ignore=shutil.ignore_patterns("testing")
    )
    for name in (
        "attic",
        "cache",
        "index",
        "locks",
        "log",
        "media",
        "media_attic",
        "media_meta",
        "meta",
        "pages",
        "tmp",
    ):
        (library / "data" / name).mkdir(parents=True)
    page = recipe("DokuWiki", tmp_path)
    local = page.files["/etc/dokuwiki/local.php"]
    local.write_text(
        f"""<?php
$conf['title'] = 'The house';
$conf['savedir'] = '{library}/data';
$conf['useacl'] = 1;
$conf['superuser'] = '@admin';
$conf['updatecheck'] = 0;
{local.read_text()}"""
    )
    password = "$2y$06$J.8gLCppqoBEVJBdqY56xuoZUYsXi.WKPjRIUF7JYTRVE9VhvFrbi"
    (settings / "users.auth.php").write_text(
        f"# <?php exit()?>\nadmin:{password}:Zoë:zoe@example.com:admin,user\n"
    )
    (settings / "acl.auth.php").write_text("# <?php exit()?>\n* @ALL 1\n* @user 8\n")
    (tmp_path / "prepend.php").write_text(
        f"<?php define('DOKU_MAIN_CONF', '{settings}/'); define('DOKU_CONF', '{settings}/');"
    )

    address = f"{tmp_path}/run/php/php8.2-fpm.sock"
    Path(address).parent.mkdir(parents=True)
    identity = ""
    if is_root := os.geteuid() == 0:
        group = grp.getgrgid(os.getgid()).gr_name
        identity = f"user = {getpass.getuser()}\ngroup = {group}"
    pool = tmp_path / "pool.conf"
    pool.write_text(POOL.format(folder=tmp_path, listen=address, identity=identity))
    start_server(
        program, "-F", "-y", str(pool), *(["-R"] if is_root else []), address=f"unix:{address}"
    )
    return gateway(page.configuration)


def test_dokuwiki(dokuwiki: Any, browser: Any, tmp_path: Path) -> None:
    data = tmp_path / "var/lib/dokuwiki/data"
    wiki = f"{dokuwiki.url}/dokuwiki/"

    def content() -> str:
        return str(browser.run("return document.querySelector('#dokuwiki__content').innerText"))

    browser.open(wiki)
    assert browser.url == f"{wiki}doku.php?id=start"
    assert "This topic does not exist yet" in content()
    # The style sheet and the script are pages (lib/exe/css.php, js.php); pictures are files.
    colour = "return getComputedStyle(document.documentElement).backgroundColor"
    assert browser.run(colour) == "rgb(251, 250, 249)"
    assert browser.run("return JSINFO.id + typeof jQuery") == "startfunction"

    browser.open(f"{wiki}doku.php?id=start&do=login")
    browser.write("#dw__login [name=u]", "admin")
    browser.write("#dw__login [name=p]", "open sesame\n")
    browser.wait_for("return document.querySelector('.action.logout') !== null")
    assert "Zoë" in browser.run("return document.querySelector('#dokuwiki__usertools').innerText")

    image = tmp_path / "picture.png"
    image.write_bytes(picture(1200, 900))  # 3 MB
    browser.open(f"{wiki}doku.php?id=gates:north&do=media&ns=gates&tab_files=upload")
    browser.wait_for("return document.querySelector('.qq-upload-button input') !== null")
    browser.write(".qq-upload-button input[type=file]", str(image))
    browser.click("#mediamanager__upload_button")
    browser.wait_for(
        "return document.querySelector('.qq-upload-success, #mediamanager__done_form') !== null"
    )
    assert (data / "media/gates/picture.png").read_bytes() == image.read_bytes()
    sizes = browser.run(
        "return fetch(arguments[0]).then((got) => got.blob()).then((got) => [got.size, got.type])",
        f"{wiki}lib/exe/fetch.php?media=gates:picture.png",
    )
    assert sizes == [image.stat().st_size, "image/png"]
    # The gateway sends it, by X-Sendfile: so there are ranges, which PHP was not asked for.
    media = "/dokuwiki/lib/exe/fetch.php?media=gates:picture.png"
    part = dokuwiki.get(media, {"Range": "bytes=10-19", "Cookie": browser.cookies()})
    assert (part.status, part.body) == (206, image.read_bytes()[10:20])
    assert "X-Sendfile" not in part.headers

    browser.open(f"{wiki}doku.php?id=gates:north&do=edit")
    text = "====== The north gate ======\n\nGrüße, **stones** & <ropes>.\n\n{{picture.png}}\n"
    browser.run("document.querySelector('#wiki__text').value = arguments[0]", text * 10)
    browser.click("#edbtn__preview")
    browser.wait_for(
        "return [...document.querySelectorAll('.preview strong')]"
        ".filter((strong) => strong.innerText == 'stones').length"
    )
    # The page rolls to its preview by itself: a click by coordinates may miss.
    browser.run("document.querySelector('#edbtn__save').click()")
    browser.wait_for(
        "return document.readyState == 'complete' && !document.querySelector('#wiki__text')"
        " && document.querySelector('#dokuwiki__content h1') !== null"
    )
    assert (data / "pages/gates/north.txt").read_text() == text * 10
    assert "Grüße, stones & <ropes>." in content()

    browser.open(f"{wiki}doku.php?id=gates:north")
    browser.wait_for("return document.querySelector('#dokuwiki__content img').naturalWidth > 0")
    for action in ("revisions", "backlink", "recent", "index", "admin", "profile", "diff"):
        browser.open(f"{wiki}doku.php?id=gates:north&do={action}")
        assert content(), action
    # What pages do in a picture of one pixel, and not at once: the index of words.
    run = "return fetch(arguments[0]).then((got) => got.status)"
    assert browser.run(run, f"{wiki}lib/exe/taskrunner.php?id=gates:north") == 200
    browser.open(f"{wiki}doku.php?do=search&q=ropes")
    assert "**stones** & <ropes>" in content()
    for path in ("inc/init.php", "bin/indexer.php", "vendor/autoload.php", "install.php"):
        assert dokuwiki.get(f"/dokuwiki/{path}").status == 302
    for path in ("conf/local.php", "data/pages/gates/north.txt", "lib/plugins/../../inc/init.php"):
        assert dokuwiki.get(f"/dokuwiki/{path}").status in (302, 404)
    browser.click(".action.logout")
    browser.wait_for("return document.querySelector('.action.login') !== null")
    browser.open(f"{wiki}doku.php?id=gates:north&do=edit")
    assert browser.run("return document.querySelector('#edbtn__save')") is None
    assert browser.complaints() == []
    assert browser.failed_loads() == []
