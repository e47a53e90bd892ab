"""Files and scripts in one folder: what goes to whom."""

import pytest

from tetrapylon.adapters.errors import Forbidden, NotFound
from tetrapylon.gateway.backends.base import Backend
from tetrapylon.gateway.backends.files_first import FilesFirstBackend


class Recorder(Backend):
    def __init__(self, name: str, error: Exception | None = None) -> None:
        super().__init__(name, body_limit_bytes=7)
        self.error = error
        self.calls: list[str] = []
        self.local_redirects = 3

    async def __call__(self, scope, receive, send) -> None:
        self.calls.append(scope["path"])
        if self.error is not None:
            raise self.error

    async def __aenter__(self):
        self.calls.append("enter")
        return self

    async def __aexit__(self, *_) -> None:
        self.calls.append("exit")

    def describe(self) -> str:
        return "FastCGI somewhere"


async def _nothing(*_):
    raise AssertionError("neither receive nor send is called here")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def ask(
    path: str,
    method: str = "GET",
    *,
    of_files: Exception | None = None,
    of_scripts: Exception | None = None,
) -> tuple[bool, bool]:
    """Tell whether the files were asked, and whether the scripts."""
    files, scripts = Recorder("files", of_files), Recorder("site", of_scripts)
    backend = FilesFirstBackend(scripts, files, split=(".php",))
    await backend({"type": "http", "method": method, "path": path}, _nothing, _nothing)
    return bool(files.calls), bool(scripts.calls)


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/style.css", "/sub/page", "/a.php.txt", "/php"])
async def test_files_are_asked_first(path) -> None:
    assert await ask(path) == (True, False)
    assert await ask(path, "HEAD") == (True, False)


@pytest.mark.anyio
@pytest.mark.parametrize("error", [NotFound("x"), Forbidden("a folder without an index")])
async def test_scripts_are_asked_for_what_is_no_file(error) -> None:
    assert await ask("/blog", of_files=error) == (True, True)


@pytest.mark.anyio
async def test_a_folder_s_index_is_a_script_or_else_a_file() -> None:
    assert await ask("/") == (False, True)
    assert await ask("/sub/", of_scripts=NotFound("no index.php")) == (True, True)
    with pytest.raises(Forbidden):
        await ask("/", of_scripts=NotFound("x"), of_files=Forbidden("not listed"))


@pytest.mark.anyio
async def test_other_failures_are_the_files_own() -> None:
    with pytest.raises(OSError):
        await ask("/x", of_files=OSError())


@pytest.mark.anyio
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_files_are_only_read(method) -> None:
    assert await ask("/style.css", method) == (False, True)


# D5: the source of a script is never sent, in whatever way it is written.
@pytest.mark.anyio
@pytest.mark.parametrize(
    "path",
    ["/a.php", "/a.PHP", "/a.pHp/b.css", "/a.php./x", "/a.php ", "/a.phtml", "/a.phar", "/db.inc"],
)
async def test_what_may_be_a_script_is_never_asked_of_the_files(path) -> None:
    assert await ask(path) == (False, True)


@pytest.mark.anyio
async def test_both_live_as_long_as_it_does() -> None:
    files, scripts = Recorder("files"), Recorder("site")
    async with FilesFirstBackend(scripts, files, split=(".php",)) as backend:
        assert (backend.name, backend.local_redirects, backend.body_limit_bytes) == ("site", 3, 7)
        assert files.calls == scripts.calls == ["enter"]
    assert files.calls == scripts.calls == ["enter", "exit"]


@pytest.mark.anyio
async def test_a_failed_start_leaves_what_was_started() -> None:
    class Failing(Recorder):
        async def __aenter__(self):
            raise RuntimeError("no")

    files = Recorder("files")
    with pytest.raises(RuntimeError):
        await FilesFirstBackend(Failing("site"), files, split=()).__aenter__()
    assert files.calls == ["enter", "exit"]
