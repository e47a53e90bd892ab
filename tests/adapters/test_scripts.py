"""Which script a path means; above all, that nothing else is ever found (D1, D3, D4, D5)."""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tetrapylon.adapters.errors import BackendError, Forbidden, NotFound
from tetrapylon.adapters.scripts import Script, SlashMissing, find_script

PHP = {"split": (".php",), "index": ("index.php",)}


def touch(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    return file


@pytest.fixture(scope="module")
def srv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the root `www`, and beside it what must never be found."""
    srv = tmp_path_factory.mktemp("srv")
    for name in (
        "www/hello",
        "www/sub/deep/run.py",
        "www/sub/with space",
        "www/sub/p\u00e5",
        "www/\u0130.php",
        "www/a.jpg",
        "www/index.php",
        "www/index.html",
        "www/app/index.php",
        "www/app/view.php",
        "www/app/view.php.bak",
        "www/app/view.PHP",
        "www/odd.php/inner.php",
        "www/.htpasswd",
        "www/.git/config",
        "www/sub/.hidden/run.py",
        "www/sub/.secret",
        "www/dotted.",
        "www/ctl\nname",
        "www/back\\slash",
        "www-private/secret",
        "secret",
        "etc/passwd",
    ):
        touch(srv / name)
    (srv / "www/empty").mkdir()
    return srv


@pytest.fixture
def root(srv: Path) -> str:
    return str(srv / "www")


class TestFound:
    @pytest.mark.parametrize(
        ("path", "script", "path_info"),
        [
            (b"/hello", b"/hello", b""),
            (b"/hello/", b"/hello", b"/"),  # CGI-4.1.5-VOID
            (b"/hello/a/B", b"/hello", b"/a/B"),  # CGI-4.1.5-CASE
            (b"/hello//a//", b"/hello", b"//a//"),
            (b"/hello/.git/x", b"/hello", b"/.git/x"),  # no file name: only data
            (b"/hello/a\\b\x01\xff%2e;x=1 ", b"/hello", b"/a\\b\x01\xff%2e;x=1 "),
            (b"/hello/...", b"/hello", b"/..."),
            (b"/sub/deep/run.py/x", b"/sub/deep/run.py", b"/x"),
            (b"/sub/with space", b"/sub/with space", b""),
            (b"/sub/p\xc3\xa5/\xc3\xa5", b"/sub/p\xc3\xa5", b"/\xc3\xa5"),
            (b"/a.jpg/b.php", b"/a.jpg", b"/b.php"),
        ],
    )
    @pytest.mark.parametrize("prefix", [b"", b"/cgi-bin", b"/p\xff"])
    def test_first_file(
        self, root: str, path: bytes, script: bytes, path_info: bytes, prefix: bytes
    ) -> None:  # CGI-3.2-SELECT, CGI-3.2-TREE, CGI-4.1.13
        assert find_script(root, path, prefix=prefix) == Script(
            os.fsdecode(os.fsencode(root) + script), prefix + script, path_info, root
        )

    @pytest.mark.parametrize(
        ("path", "script", "path_info"),
        [
            (b"/index.php", b"/index.php", b""),
            (b"/app/view.php/a/b.php", b"/app/view.php", b"/a/b.php"),
            (b"/app/view.php/", b"/app/view.php", b"/"),
            # A directory may be named like a script.
            (b"/odd.php/inner.php/x", b"/odd.php/inner.php", b"/x"),
            # D5: folding the case of this name changes its length.
            (b"/\xc4\xb0.php/x.php", b"/\xc4\xb0.php", b"/x.php"),
            (b"/", b"/index.php", b""),
            (b"/app/", b"/app/index.php", b""),
        ],
    )
    def test_split(self, root: str, path: bytes, script: bytes, path_info: bytes) -> None:
        found = find_script(root, path, prefix=b"/blog", **PHP)
        assert found.filename == os.fsdecode(os.fsencode(root) + script)
        assert found.script_name == b"/blog" + script
        assert found.path_info == path_info

    def test_index_in_order(self, root: str) -> None:
        found = find_script(root, b"/", prefix=b"", index=("none", "index.html", "index.php"))
        assert found.filename == root + "/index.html"
        # Only what may be run is an index.
        found = find_script(
            root, b"/", prefix=b"", split=(".php",), index=("index.html", "index.php")
        )
        assert found.filename == root + "/index.php"
        # A directory is not an index.
        found = find_script(root, b"/", prefix=b"", index=("sub", "index.php"))
        assert found.filename == root + "/index.php"

    def test_index_needs_the_slash(self, root: str) -> None:
        for path, prefix in ((b"/app", b""), (b"/app", b"/blog"), (b"", b"/blog")):
            with pytest.raises(SlashMissing):
                find_script(root, path, prefix=prefix, **PHP)
        # Without an index it is just not found.
        with pytest.raises(NotFound) as raised:
            find_script(root, b"/sub", prefix=b"", **PHP)
        assert type(raised.value) is NotFound
        # At the top of a host there is no path without a slash.
        assert find_script(root, b"", prefix=b"", **PHP).script_name == b"/index.php"

    def test_relative_root_becomes_absolute(
        self, srv: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(srv)
        found = find_script("www/", b"/hello", prefix=b"")
        assert found.filename == str(srv / "www/hello")
        assert found.root == str(srv / "www")

    def test_root_of_the_file_system(self, root: str) -> None:
        found = find_script("/", os.fsencode(root) + b"/hello/x", prefix=b"")
        assert found.filename == root + "/hello"
        assert found.path_info == b"/x"


# URL paths; each is decoded once, as the listener does it.
OUTSIDE = [
    "/..",
    "/../secret",
    "/../www-private/secret",
    "/../www/hello",
    "/./hello",
    "/sub/../hello",
    "/sub/../../secret",
    "/sub/deep/../../../secret",
    "/sub/deep/../../hello",
    "/hello/../../secret",
    "/hello/..",
    "/hello/../hello",
    "/hello/.",
    "/hello/./x",
    "/hello/x/../../../secret",
    "/%2e%2e/secret",
    "/%2E%2E/secret",
    "/.%2e/secret",
    "/%2e./secret",
    "/%2e/hello",
    "/sub/%2e%2e/%2e%2e/secret",
    "/..%2fsecret",
    "/..%2Fsecret",
    "/%2e%2e%2fsecret",
    "/sub%2f..%2f..%2fsecret",
    "/sub/..%2f..%2fsecret",
    "/..%5csecret",
    "/..%5Csecret",
    "/%5c..%5csecret",
    "/sub%5c..%5c..%5csecret",
    "/..\\secret",
    "/back%5cslash",
    "/back\\slash",
    "/%00",
    "/hello%00",
    "/hello%00.php",
    "/hello/%00",
    "/../secret%00.html",
    "/sub/deep/run.py%00/x",
    "//hello",
    "///hello",
    "//etc/passwd",
    "//../secret",
    "/sub//deep/run.py",
    "/sub///with%20space",
    "/sub//..//..//secret",
    "/;/hello",
    "/hello;",
    "/hello;x=1",
    "/..;/secret",
    "/..;x/secret",
    "/sub;/deep/run.py",
    "/%c0%ae%c0%ae/secret",
    "/%c0%ae%c0%ae%c0%afsecret",
    "/..%c0%afsecret",
    "/%e0%80%ae%e0%80%ae/secret",
    "/%f0%80%80%ae%f0%80%80%ae/secret",
    "/%c1%9c..%c1%9csecret",
    "/..%ef%bc%8fsecret",
    "/%ef%bc%8e%ef%bc%8e/secret",
    "/%252e%252e/secret",
    "/%252e%252e%252fsecret",
    "/..%252fsecret",
    "/%u002e%u002e/secret",
    "/%uff0e%uff0e/secret",
    "/../www-private/secret/x",
    "/-private/secret",
    "-private/secret",
    "secret",
    "hello",
    "../secret",
    "..",
    "%2e%2e/secret",
    "/hello.",
    "/hello..",
    "/hello%20",
    "/hello%20.",
    "/hello%09",
    "/hello::$DATA",
    "/hello%0a",
    "/hello%0d%0a",
    "/dotted.",
    "/ctl%0aname",
    "/HELLO",
    "/Hello",
    "/.",
    "/./",
    "/.htpasswd",
    "/%2ehtpasswd",
    "/.git/config",
    "/sub/.secret",
    "/sub/.hidden/run.py",
    "/sub/%2ehidden/run.py",
    "/...",
    "/.../hello",
    "/~root",
    "/~/hello",
    "/$HOME/secret",
    "/*",
    "/hell?",
    "/h*",
    "/[h]ello",
    "/{hello,x}",
    "/sub/deep",
    "/sub/deep/",
    "/empty/",
    "/empty/x",
    "/none/hello",
    "/C:/secret",
    "/file:///etc/passwd",
    "/http://example.com/hello",
    "/etc/passwd",
    "/proc/self/environ",
    "/dev/null",
]


def test_there_are_sixty_spellings() -> None:
    assert len(set(OUTSIDE)) >= 60


@pytest.mark.parametrize("prefix", [b"", b"/cgi-bin"])
@pytest.mark.parametrize("spelling", OUTSIDE)
def test_spelling_finds_nothing(root: str, spelling: str, prefix: bytes) -> None:  # D1, CGI-9.8
    path = unquote_to_bytes(spelling)
    for options in ({}, PHP, {"split": (".py", "")}, {"index": ("index.php",)}):
        with pytest.raises(BackendError) as raised:
            find_script(root, path, prefix=prefix, **options)
        assert raised.value.status in (403, 404)


@pytest.mark.parametrize(  # D5
    "spelling",
    [
        "/a.jpg/b.php",
        "/a.jpg/index.php",
        "/a.jpg%00.php",
        "/a.jpg/.php",
        "/a.jpg",
        "/hello/index.php",
        "/index.php%0a",
        "/index.php%0a/x",
        "/index.php%0d",
        "/index.php%20",
        "/index.php%20/",
        "/index.php.",
        "/index.php..",
        "/index.php%2e",
        "/index.php::$DATA",
        "/index.php;.jpg",
        "/index.PHP",
        "/INDEX.php",
        "/index.pHp",
        "/index.php%00",
        "/index.php%00.jpg",
        "/app/view.PHP",
        "/app/view.php.bak",
        "/app/view.php.bak/x.php",
        "/app/view.php~",
        "/app/view.php5",
        "/app/viewxphp",
        "/app/view",
        "/app/.php",
        "/odd.php",
        "/odd.php/",
        "/odd.php/none.php",
        "/odd.php/inner",
        "/none.php",
        "/none.php/index.php",
        "/İ.PHP",
        "/ı.php",
        "/i̇.php",
        "/I.php",
        "/i.php",
        "/İ.phｐ",
        "/index.html",
        "/.php",
        "/..php",
        "/x.php/../index.php",
        "/%69ndex%2ephp%2f..",
    ],
)
def test_only_an_existing_script_runs(root: str, spelling: str) -> None:
    path = unquote_to_bytes(spelling)
    with pytest.raises(BackendError) as raised:
        find_script(root, path, prefix=b"", split=(".php",))
    assert raised.value.status in (403, 404)


def test_name_too_long(root: str) -> None:
    for path in (b"/" + b"a" * 300, b"/a" * 5000, b"/sub" + b"/deep" * 2000):
        with pytest.raises(NotFound):
            find_script(root, path, prefix=b"")


class TestSymlinks:  # D3
    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        touch(tmp_path / "outside/secret")
        touch(tmp_path / "root-private/secret")
        touch(tmp_path / "root/sub/run")
        return tmp_path

    @pytest.mark.parametrize(
        ("target", "path"),
        [
            ("../outside/secret", b"/link"),
            ("{}/outside/secret", b"/link"),
            ("../outside", b"/link/secret"),
            ("../root-private/secret", b"/link"),
            ("../root-private", b"/link/secret"),
            ("..", b"/link/outside/secret"),
            ("/", b"/link/etc/passwd"),
            ("../root", b"/link/sub/run"),
            ("/etc/passwd", b"/link"),
            ("/proc/self/root/etc/passwd", b"/link"),
            ("/dev/zero", b"/link"),
            ("sub/../../outside/secret", b"/link"),
        ],
    )
    def test_out_of_the_root(self, tree: Path, target: str, path: bytes) -> None:
        (tree / "root/link").symlink_to(target.format(tree))
        with pytest.raises(Forbidden):
            find_script(str(tree / "root"), path, prefix=b"")

    def test_out_of_the_root_by_another_link(self, tree: Path) -> None:
        (tree / "root/first").symlink_to("second")
        (tree / "root/second").symlink_to("sub/third")
        (tree / "root/sub/third").symlink_to("../../outside/secret")
        for path in (b"/first", b"/second", b"/sub/third"):
            with pytest.raises(Forbidden):
                find_script(str(tree / "root"), path, prefix=b"")

    def test_out_of_the_root_beneath_a_link_inside(self, tree: Path) -> None:
        (tree / "root/link").symlink_to("sub")
        (tree / "root/sub/out").symlink_to("../../outside")
        with pytest.raises(Forbidden):
            find_script(str(tree / "root"), b"/link/out/secret", prefix=b"")

    def test_inside(self, tree: Path) -> None:
        root = str(tree / "root")
        (tree / "root/file").symlink_to("sub/run")
        (tree / "root/directory").symlink_to(tree / "root/sub")
        assert find_script(root, b"/file/x", prefix=b"") == Script(
            root + "/file", b"/file", b"/x", root
        )
        assert find_script(root, b"/directory/run", prefix=b"").filename == root + "/directory/run"

    def test_root_is_a_link(self, tree: Path) -> None:
        (tree / "alias").symlink_to("root")
        (tree / "root/file").symlink_to("sub/run")
        (tree / "root/out").symlink_to("../outside/secret")
        root = str(tree / "alias")
        assert find_script(root, b"/file", prefix=b"").filename == root + "/file"
        assert find_script(root, b"/sub/run", prefix=b"").filename == root + "/sub/run"
        with pytest.raises(Forbidden):
            find_script(root, b"/out", prefix=b"")

    def test_dangling_and_endless(self, tree: Path) -> None:
        (tree / "root/dangling").symlink_to("none")
        (tree / "root/loop").symlink_to("loop")
        (tree / "root/ping").symlink_to("pong")
        (tree / "root/pong").symlink_to("ping")
        for path in (b"/dangling", b"/loop", b"/ping", b"/ping/x"):
            with pytest.raises(NotFound):
                find_script(str(tree / "root"), path, prefix=b"")

    def test_index_that_leads_out(self, tree: Path) -> None:
        (tree / "root/index").symlink_to("../outside/secret")
        with pytest.raises(Forbidden):
            find_script(str(tree / "root"), b"/", prefix=b"", index=("index",))

    def test_directory_swapped_for_a_link_all_the_while(self, tree: Path) -> None:
        # A lookup sees one state or the other; what is not there any more is no surprise.
        root = tree / "root"
        (root / "way").mkdir()
        (root / "out").symlink_to("../outside")
        touch(root / "way/run")
        done = threading.Event()

        def swap() -> None:
            while not done.is_set():
                os.rename(root / "way", root / "away")
                os.rename(root / "out", root / "way")
                os.rename(root / "way", root / "out")
                os.rename(root / "away", root / "way")

        swapper = threading.Thread(target=swap)
        swapper.start()
        found = 0
        try:
            for _ in range(2000):
                try:
                    find_script(str(root), b"/way/run", prefix=b"")
                    found += 1
                except (Forbidden, NotFound):
                    pass
                with pytest.raises(BackendError):
                    find_script(str(root), b"/out/secret", prefix=b"")
        finally:
            done.set()
            swapper.join()
        assert found


class TestKinds:  # D4
    @pytest.fixture
    def kinds(self, tmp_path: Path) -> Path:
        os.mkfifo(tmp_path / "fifo", 0o777)
        os.mknod(tmp_path / "socket", stat.S_IFSOCK | 0o777)
        touch(tmp_path / "mode-000").chmod(0)
        touch(tmp_path / "closed/run")
        touch(tmp_path / "listed/run")
        (tmp_path / "fifo-link").symlink_to("fifo")
        return tmp_path

    @pytest.mark.parametrize(
        "path",
        [
            b"/fifo",
            b"/fifo/x",
            b"/socket",
            b"/mode-000",
            b"/closed/run",
            b"/listed/run",
            b"/fifo-link",
        ],
    )
    def test_forbidden_at_once(self, kinds: Path, path: bytes) -> None:
        (kinds / "closed").chmod(0)
        (kinds / "listed").chmod(0o444)
        try:
            start = time.monotonic()
            with pytest.raises(Forbidden):
                find_script(str(kinds), path, prefix=b"")
            assert time.monotonic() - start < 0.05
        finally:
            (kinds / "closed").chmod(0o755)
            (kinds / "listed").chmod(0o755)

    def test_devices(self) -> None:
        for path in (b"/null", b"/zero"):
            with pytest.raises(Forbidden):
                find_script("/dev", path, prefix=b"")

    def test_root_that_is_not_there(self, tmp_path: Path) -> None:
        for path in (b"/x", b"/", b""):
            with pytest.raises(NotFound):
                find_script(str(tmp_path / "none"), path, prefix=b"", index=("index",))


segments = st.sampled_from(
    [
        *(b"hello", b"sub", b"deep", b"run.py", b"index.php", b"app", b"view.php", b"a.jpg"),
        *(b"..", b".", b"", b"...", b"secret", b".git", b"\\", b"\0", b"%2e%2e", b"\xff"),
    ]
) | st.binary(max_size=3)


@settings(max_examples=300, deadline=None)
@given(
    path=st.lists(segments, max_size=6).map(lambda parts: b"".join(b"/" + part for part in parts)),
    prefix=st.sampled_from([b"", b"/cgi-bin"]),
    split=st.sampled_from([(), (".php",), (".py", ".php")]),
)
def test_what_is_found_is_beneath_the_root(
    srv: Path, path: bytes, prefix: bytes, split: tuple[str, ...]
) -> None:
    root = str(srv / "www")
    try:
        script = find_script(root, path, prefix=prefix, split=split)
    except BackendError as error:
        assert error.status in (403, 404)
        return
    assert script.script_name + script.path_info == prefix + path  # CGI-4.1.13-PREFIX
    assert script.filename == os.path.realpath(script.filename)
    assert script.filename.startswith(root + "/")
    assert os.path.isfile(script.filename)
    assert script.filename.endswith(split or "")
    assert not script.path_info or script.path_info.startswith(b"/")
