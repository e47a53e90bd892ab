"""Files are opened beneath the root and nowhere else, by both resolvers."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tetrapylon.adapters.errors import Forbidden, NotFound, Unavailable
from tetrapylon.gateway import beneath
from tetrapylon.gateway.beneath import RESOLVER, Resolver, Root, open_beneath

RESOLVERS: list[Resolver] = ["walk"] if RESOLVER == "walk" else ["kernel", "walk"]

Read = Callable[..., bytes]


@pytest.fixture(params=RESOLVERS)
def resolver(request: pytest.FixtureRequest) -> Resolver:
    return request.param


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "f.txt").write_bytes(b"inside")
    (root / "top.txt").write_bytes(b"top")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "f.txt").write_bytes(b"secret")
    (tmp_path / "root-sibling").mkdir()
    (tmp_path / "root-sibling" / "f.txt").write_bytes(b"secret")
    return root


@pytest.fixture
def read(tree: Path, resolver: Resolver) -> Iterator[Read]:
    root = Root(tree)

    def read(path: bytes, **options: object) -> bytes:
        fd, status = open_beneath(root.fileno(), path, resolver=resolver, **options)
        try:
            assert not os.get_inheritable(fd)
            data = os.read(fd, 100)
            assert status.st_size == len(data)
            return data
        finally:
            os.close(fd)

    before = os.listdir("/dev/fd")
    root.fileno()
    yield read
    root.close()
    assert len(os.listdir("/dev/fd")) == len(before), "a descriptor was left open"


def test_opens_files_at_any_depth(read: Read) -> None:
    assert read(b"top.txt") == b"top"
    assert read(b"a/b/f.txt") == b"inside"
    assert read(b"a//b/./f.txt") == b"inside"


@pytest.mark.parametrize("path", [b"", b".", b"a", b"a/", b"a/b/", b"a/b/."])
def test_a_directory_is_said_to_be_one(read: Read, path: bytes) -> None:
    with pytest.raises(IsADirectoryError):
        read(path)


@pytest.mark.parametrize(
    "path",
    [
        b"nothing",
        b"a/nothing/f.txt",
        b"top.txt/",
        b"top.txt/more",
        b"top.txt.",
        b"TOP.TXT",
        b"x" * 300,
        b"..",
        b"../secret/f.txt",
        b"a/../../secret/f.txt",
        b"a/b/../b/f.txt",  # it would stay inside, but nobody asks like that
        b"a/b/f.txt/..",
        b"/etc/passwd",
        b"//etc/passwd",
        b"top.txt\0",
        b"top.txt\0.html",
        b"..\\secret\\f.txt",
        b"../root-sibling/f.txt",
        b"\xff\xfe",
    ],
)
def test_what_is_not_there_is_not_found(read: Read, path: bytes) -> None:  # D1
    with pytest.raises(NotFound):
        read(path)


def test_links_are_followed_inside_and_refused_outside(  # D3
    read: Read, tree: Path, resolver: Resolver
) -> None:
    (tree / "in").symlink_to("a/b/f.txt")
    (tree / "a" / "up").symlink_to("../top.txt")
    (tree / "dir").symlink_to("a")
    (tree / "a" / "chain").symlink_to("../dir/b")
    assert read(b"in") == b"inside"
    assert read(b"a/up") == b"top"
    assert read(b"dir/b/f.txt") == b"inside"
    assert read(b"a/chain/f.txt") == b"inside"
    assert read(b"dir/up") == b"top"

    (tree / "out").symlink_to("../secret/f.txt")
    (tree / "outdir").symlink_to("../secret")
    (tree / "a" / "far").symlink_to("b/../../../secret/f.txt")
    (tree / "absolute").symlink_to(tree / "top.txt")
    (tree / "etc").symlink_to("/etc")
    (tree / "loop").symlink_to("loop")
    refused = (b"out", b"outdir/f.txt", b"a/far", b"dir/far", b"absolute", b"etc/passwd", b"loop")
    for path in refused:
        with pytest.raises(Forbidden):
            read(path)
    (tree / "dangling").symlink_to("gone")
    with pytest.raises(NotFound):
        read(b"dangling")


def test_no_link_at_all(read: Read, tree: Path) -> None:
    (tree / "in").symlink_to("top.txt")
    (tree / "dir").symlink_to("a")
    assert read(b"a/b/f.txt", symlinks="never") == b"inside"
    for path in (b"in", b"dir/b/f.txt"):
        with pytest.raises(Forbidden):
            read(path, symlinks="never")


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc here")
def test_magic_links_are_no_way_out(resolver: Resolver) -> None:
    with tempfile.TemporaryFile() as file:
        root = Root("/proc/self")
        try:
            with pytest.raises((Forbidden, NotFound)):
                open_beneath(root.fileno(), b"fd/%d" % file.fileno(), resolver=resolver)
        finally:
            root.close()


def test_only_regular_files_and_none_blocks(read: Read, tree: Path) -> None:  # D4
    os.mkfifo(tree / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(tree)  # a unix socket's path is short
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
        for path in (b"fifo", b"socket"):
            began = time.monotonic()
            with pytest.raises(Forbidden):
                read(path)
            assert time.monotonic() - began < 0.05


def test_a_device_is_refused(resolver: Resolver) -> None:  # D4
    root = Root("/dev")
    try:
        with pytest.raises(Forbidden):
            open_beneath(root.fileno(), b"null", resolver=resolver)
    finally:
        root.close()


@contextlib.contextmanager
def _unprivileged() -> Iterator[None]:
    """Root may read everything; then be somebody else for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_what_may_not_be_read_is_forbidden(resolver: Resolver) -> None:  # D4
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        top.chmod(0o755)
        (top / "closed.txt").write_bytes(b"x")
        (top / "closed.txt").chmod(0)
        (top / "shut").mkdir()
        (top / "shut" / "f.txt").write_bytes(b"x")
        (top / "unlisted").mkdir()
        (top / "unlisted" / "f.txt").write_bytes(b"listed by nobody")
        (top / "unlisted" / "f.txt").chmod(0o644)
        (top / "shut").chmod(0)
        (top / "unlisted").chmod(0o711)
        root = Root(top)
        try:
            with _unprivileged():
                for path in (b"closed.txt", b"shut/f.txt"):
                    with pytest.raises(Forbidden):
                        open_beneath(root.fileno(), path, resolver=resolver)
                # To pass through a directory is not to list it.
                fd, _ = open_beneath(root.fileno(), b"unlisted/f.txt", resolver=resolver)
                os.close(fd)
        finally:
            root.close()
            (top / "shut").chmod(0o700)


@pytest.mark.parametrize("symlinks", ["inside", "never"])
def test_a_directory_swapped_for_a_link_is_never_left(  # D3
    tree: Path, resolver: Resolver, symlinks: beneath.Symlinks
) -> None:
    """10,000 swaps while another thread reads: the file, or a refusal; the secret never."""
    good = tree / "a"
    (tree / "link").symlink_to("../secret")
    (tree.parent / "secret" / "b").mkdir()
    (tree.parent / "secret" / "b" / "f.txt").write_bytes(b"secret")
    is_over = threading.Event()

    def swap() -> None:
        for _ in range(10_000):
            os.rename(good, tree / "aside")
            os.rename(tree / "link", good)
            os.rename(good, tree / "link")
            os.rename(tree / "aside", good)
        is_over.set()

    root = Root(tree)
    seen = {b"inside": 0, "refused": 0}
    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        while not is_over.is_set():
            try:
                fd, _ = open_beneath(
                    root.fileno(), b"a/b/f.txt", symlinks=symlinks, resolver=resolver
                )
            except (NotFound, Forbidden, Unavailable):
                seen["refused"] += 1
                continue
            try:
                seen[os.read(fd, 100)] += 1  # a KeyError would be the secret
            finally:
                os.close(fd)
    finally:
        swapper.join()
        root.close()
    assert seen[b"inside"]
    assert seen["refused"]


def test_a_root_follows_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "f").write_text(version)
    current = tmp_path / "current"
    current.symlink_to("one")
    root = Root(current)
    now = 1000.0
    monkeypatch.setattr(beneath.time, "monotonic", lambda: now)

    def read() -> bytes:
        fd, _ = open_beneath(root.fileno(), b"f")
        with open(fd, "rb") as file:
            return file.read()

    try:
        assert read() == b"one"
        current.unlink()
        assert read() == b"one"
        now += 1  # gone for the moment: the last good one serves
        assert read() == b"one"
        current.symlink_to("two")
        now += 1
        assert read() == b"two"
    finally:
        root.close()


def test_a_root_that_never_was(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "nothing", tmp_path / "file"):
        with pytest.raises(OSError, match=path.name):
            Root(path).fileno()


def test_no_descriptor_left_is_a_passing_fault(read: Read) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(Unavailable):
            read(b"a/b/f.txt")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
