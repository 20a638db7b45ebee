"""What the tests of bad input share: a small table, and what a refusal looks like."""

import contextlib
import io
import os
import pathlib
import zipfile

from jaxneg import main
from jaxneg.data import store

ROOT = pathlib.Path(__file__).parent.parent
INTERACTIONS, QUICKSTART = (f"--config={ROOT}/configs/{name}.py:uniform" for name in ("interactions", "quickstart"))
COLUMNS = ["--config.data.user_column=user", "--config.data.item_column=item", "--config.data.time_column=time"]
TIME = "a time is a number >= 0"
ROWS = [(1 + n % 7, 1 + n % 11, 1_000_000_000 + n) for n in range(200)]


def assert_one_line(capsys, says) -> None:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("jaxneg: ") and err.endswith("\n") and err.count("\n") == 1, err
    assert err[:-1].isprintable() and "Traceback" not in err and len(err) < 2100
    for words in says:
        assert words in err


def assert_refused(capsys, tmp_path, args, says) -> None:
    """The command of this line is refused as it should be, and leaves nothing."""
    before = set(tmp_path.iterdir())
    work, cache = tmp_path / "run", tmp_path / "cache"
    given = " ".join(args)
    args = [
        *args,
        *([] if "--workdir" in given else [f"--workdir={work}"]),
        *([] if "data.cache_dir" in given else [f"--config.data.cache_dir={cache}"]),
    ]
    assert main.main(["main.py", *args]) == 2
    assert_one_line(capsys, says)
    assert not work.exists() or not list(work.iterdir())
    for path in cache.iterdir() if cache.is_dir() else ():
        store.read(path)  # a whole folder may stay: it is no part of what was wrong
    assert set(tmp_path.iterdir()) - before <= {work, cache}


def lines(pattern: str, header: str = "", rows=ROWS) -> bytes:
    return (header + "".join(pattern.format(u=u, i=i, t=t) for u, i, t in rows)).encode()


TABLE = lines("{u},{i},{t}\n", "user,item,time\n")


def zipped(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as packed:
        for name, content in members:
            packed.writestr(name, content)
    return buffer.getvalue()


@contextlib.contextmanager
def ordinary_user():
    """The tests may run as the system's administrator, whom no permission stops: then, as somebody else."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
