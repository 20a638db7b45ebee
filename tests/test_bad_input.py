"""Whatever is wrong with a setting, a command line, a config file, a prepared folder or a results table: one line on
stderr that names the value and what is allowed, exit code 2, no traceback, and nothing half-written.
"""

import ast
import errno
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zlib

import numpy as np
import pytest
from refusals import (
    COLUMNS,
    INTERACTIONS,
    QUICKSTART,
    ROOT,
    TABLE,
    assert_one_line,
    assert_refused,
    lines,
    ordinary_user,
    zipped,
)

import jaxneg
from jaxneg import main, settings
from jaxneg.data import dataset as data
from jaxneg.data import download, prepare, store, synthetic
from jaxneg.errors import InputError
from jaxneg.report import table
from jaxneg.run import experiment

# ------------------------------------------------------------------ settings

# id: the flag after --config. -> what the line says
VALUES = {
    "seed=-1": ["config.seed=-1", "0 or more"],
    "seed=4294967296": ["config.seed=4294967296", "4294967295 at most"],  # JAX would take it for 0
    "seed=1.5": ["config.seed=1.5", "a whole number"],
    "seed=99999999999999999999999": ["config.seed=99999999999999999999999", "at most"],
    "num_seeds=0": ["config.num_seeds=0", "1 or more"],
    "num_seeds=100000000": ["config.num_seeds=100000000", "10000 at most"],
    "num_epochs=-3": ["config.num_epochs=-3", "1 or more"],
    "num_epochs=1e3": ["config.num_epochs=1e3", "a whole number"],
    "eval_every=0": ["config.eval_every=0", "1 or more"],
    "batch_size=zero": ["config.batch_size=zero", "a whole number, 1 or more"],
    "batch_size=": ["config.batch_size= ", "a whole number, 1 or more"],
    "batch_size=1000000000": ["config.batch_size=1000000000", "1000000 at most"],
    "learning_rate=0": ["config.learning_rate=0.0", "finite and above 0"],
    "learning_rate=nan": ["config.learning_rate=nan", "finite and above 0"],
    "learning_rate=1e-50": ["config.learning_rate=1e-50", "from 1e-30 to 1e30"],  # 0 in float32
    "learning_rate=1e39": ["config.learning_rate=1e+39", "from 1e-30 to 1e30"],  # inf in float32
    "learning_rate=fast": ["config.learning_rate=fast", "a number"],
    "osf=-1": ["config.osf=-1.0", "above 0, or inf"],
    "osf=1e308": ["config.osf=1e+308", "1e6 at most"],
    "learning_rate_half_life=0": ["config.learning_rate_half_life=0.0", "above 0, or inf"],
    "osf=nan": ["config.osf=nan", "above 0, or inf"],
    "reference=perhaps": ["config.reference=perhaps", "true or false"],
    "steps_per_dispatch=-1": ["config.steps_per_dispatch=-1", "0 or more"],
    "seeds_per_chunk=-2": ["config.seeds_per_chunk=-2", "0 or more"],
    "checkpoint_seconds=nan": ["config.checkpoint_seconds=nan", "0 or more"],
    "debug=maybe": ["config.debug=maybe", "true or false"],
    "num_buckets=1001": ["config.num_buckets=1001", "1000 at most"],
    "method=mixd": ["config.method='mixd'", "one of uniform, popularity"],
    "dataset=": ["config.dataset=''", "1 to 60 letters"],
    "dataset=../../etc": ["config.dataset='../../etc'", "letters, digits"],
    "dataset=a b": ["config.dataset='a b'", "letters, digits"],
    f"dataset={'x' * 5000}": ["config.dataset='xxxxxxxx", "1 to 60 letters"],
    "data.format=csv": ["config.data.format='csv'", "one of auto, movielens_dat"],
    "data.split=random": ["config.data.split='random'", "temporal, leave_one_out"],
    "data.test_fraction=1": ["config.data.test_fraction=1.0", "above 0 and below 1"],
    "data.test_fraction=0.97": ["config.data.test_fraction + config.data.valid_fraction must be below 1"],
    "data.min_user_rows=0": ["config.data.min_user_rows=0", "1 or more"],
    "data.session_gap_seconds=-1": ["config.data.session_gap_seconds=-1.0", "0 or more"],
    "data.recent_days=inf": ["config.data.recent_days=inf", "finite and above 0"],
    "data.path=mine.csv": ["config.data.path='mine.csv' would not be read", "--config.data.format=auto"],
    "data.user_column=": ["user_column, item_column and time_column must be three different names", "''"],
    "data.user_column=Time": ["must be three different names", "'Time', 'ItemId', 'Time'"],
    "data.synthetic.num_users=200000": ["num_rows is 100000", "num_users"],
    "data.synthetic.num_items=1": ["config.data.synthetic.num_items=1", "2 or more"],
    "data.synthetic.num_items=30": ["num_tastes is 20", "num_items / 2"],
    "data.min_item_rows=100000": ["synthetic data: 0 items are left", "min_item_rows=100000"],
    "data.cache_dir=/dev/null": ["cache_dir /dev/null cannot be", "--config.data.cache_dir=DIR"],
    "data.cache_dir=~nobody-is-called-so/x": ["cache_dir ~nobody-is-called-so/x cannot be used", "a folder"],
    "data.cache_dir=a\0b": ["cache_dir a\\x00b cannot be used", "a folder"],
    f"data.cache_dir={'x' * 3000}": ["cannot be used (File name too long)"],
    "sampler.num_uniform=0": ["config.sampler.num_uniform=0 leaves method uniform without negatives"],
    "sampler.num_uniform=10000000": ["config.sampler.num_uniform=10000000", "1000000 at most"],
    "sampler.scope=user": ["config.sampler.scope='user'", "sequence, position, batch"],
    "sampler.pool=all": ["config.sampler.pool='all'", "uniform, in_batch, popularity"],
    "sampler.exponent=1000": ["config.sampler.exponent=1000.0", "10 at most"],
    "model.num_heads=7": ["config.model.num_heads=7 must divide config.model.width=50"],
    "model.width=1000000000": ["config.model.width=1000000000", "10000 at most"],  # XLA would abort the process
    "model.max_len=0": ["config.model.max_len=0", "1 or more"],
    "model.dropout=1": ["config.model.dropout=1.0", "below 1"],
    "optimizer.b2=1": ["config.optimizer.b2=1.0", "below 1"],
    "optimizer.item_table=lazy": ["config.optimizer.item_table='lazy'", "auto, dense, sparse"],
    "optimizer.epsilon=0": ["config.optimizer.epsilon=0.0", "above 0"],
    "loss.name=bpq": ["config.loss.name='bpq'", "one of bce"],
    "loss.negative_weight=1e300": ["config.loss.negative_weight=1e+300", "1e30 at most"],
    "eval.ks=()": ["config.eval.ks=()", "as in (5, 10)"],
    "eval.ks=ten": ["config.eval.ks=('ten',)", "as in (5, 10)"],
    "eval.ks=0": ["config.eval.ks=(0,)", "whole numbers of 1 or more"],
    "eval.ks=1000000000000": ["config.eval.ks=(1000000000000,)", "1000000 at most"],  # a table of 7 TiB
    f"eval.ks={'(' * 3000}": ["config.eval.ks=('(((((", "as in (5, 10)"],
    f"eval.ks={'9' * 6000}": ["config.eval.ks=('99999", "as in (5, 10)"],
    "eval.memory_mb=0": ["config.eval.memory_mb=0", "1 or more"],
    "eval.empty_balance=2": ["config.eval.empty_balance=2.0", "nan or 1"],
    "batchsize=3": ["no field 'batchsize'", "did you mean 'batch_size'"],
    "sampler=3": ["config.sampler is a group of fields", "sampler.scope"],
    "=3": ["no field ''", "--help lists them all"],
    "__class__=3": ["no field '__class__'"],
}


@pytest.mark.parametrize("flag", VALUES, ids=lambda flag: flag[:50].replace("\0", "NUL"))
def test_a_bad_setting(capsys, tmp_path, flag):
    assert_refused(capsys, tmp_path, [QUICKSTART, f"--config.{flag}"], VALUES[flag])


def test_more_negatives_than_items_is_found_when_the_data_is_there(capsys, tmp_path):
    config = [
        QUICKSTART,
        "--config.data.synthetic.num_items=90",
        "--config.data.synthetic.num_rows=5000",
        "--config.data.synthetic.num_users=100",
        "--config.sampler.num_uniform=91",
        f"--config.data.cache_dir={tmp_path}/cache",
    ]
    main.main(["main.py", *config, f"--workdir={tmp_path}/run"])  # prepares the data, and says so
    capsys.readouterr()
    assert_refused(capsys, tmp_path, config, ["sampler.num_uniform is 91", "at most the number of items, 88"])
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------ command lines

COMMANDS = {
    "nothing at all": ([], ["--config is needed", "configs/quickstart.py"]),
    "no config": (["--workdir=x"], ["--config is needed"]),
    "an empty config": (["--config="], ["--config is needed"]),
    "no workdir": ([QUICKSTART, "--workdir="], ["--workdir is needed", "--workdir=runs/first"]),
    "a flag without its value": (
        [QUICKSTART, "--workdir=x", "--config.data.cache_dir=x", "--config.seed"],
        ["Missing value for flag --config.seed"],
    ),
    "a flag as the value of another": ([QUICKSTART, "--config.seed", "--config.seed"], ["config.seed=--config.seed"]),
    "an unknown flag": ([QUICKSTART, "--wrokdir=x", "--workdir=x"], ["wrokdir", "workdir"]),
    "three dashes": ([QUICKSTART, "---config.seed=1"], ["-config.seed"]),
    "a word too many": ([QUICKSTART, "again"], ["unexpected argument 'again'", "every setting is a flag"]),
    "a control character": ([QUICKSTART, "\x1b[31mred"], ["unexpected argument '\\x1b[31mred'"]),
    "bytes that are no text": ([QUICKSTART, "\udcff"], ["unexpected argument '\\udcff'"]),
    "no- with a value": ([QUICKSTART, "--noconfig.reference=true"], ["--noconfig.reference", "argument"]),
    "no- before what is no switch": ([QUICKSTART, "--noconfig.seed"], ["noconfig.seed"]),
    "no- in the middle": ([QUICKSTART, "--config.noreference"], ["no field 'noreference'", "'reference'"]),
    "capital letters": ([QUICKSTART, "--config.Seed=1"], ["no field 'Seed'", "did you mean 'seed'"]),
    "a file of flags": ([QUICKSTART, f"--flagfile={sys.executable}"], ["--flagfile", "on the command line"]),
    "flags excused": ([QUICKSTART, "--undefok=sed", "--sed=3"], ["--undefok=sed", "is not allowed"]),
    "a config that is not there": (["--config=configs/ml1.py"], ["there is no file configs/ml1.py"]),
    "a folder as config": ([f"--config={ROOT}/configs"], ["there is no file", "configs"]),
    "a long name as config": (["--config=" + "x" * 5000], ["File name too long"]),
    "a device as config": (["--config=/dev/null"], ["there is no file /dev/null"]),
    "a program as config": ([f"--config={sys.executable}"], ["SyntaxError"]),
    "an unknown method": (
        [QUICKSTART.replace("uniform", "hard")],
        ["unknown method or model 'hard'", "known methods: uniform"],
    ),
    "two methods": ([QUICKSTART + ":mixed"], ["unknown method or model 'uniform:mixed'", "known methods: uniform"]),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_a_bad_command_line(capsys, tmp_path, case):
    args, says = COMMANDS[case]
    if case == "no workdir":
        assert main.main(["main.py", *args]) == 2
        assert_one_line(capsys, says)
    else:
        assert_refused(capsys, tmp_path, args, says)


BASE = "from jaxneg import config\ndef get_config():\n    c = config.base()\n"
CONFIG_FILES = {
    "empty": ("", ["KeyError: get_config"]),
    "not Python": ("def get_config(:\n", ["SyntaxError"]),
    "not text": (b"\xff\xfe\x00c", ["SyntaxError"]),
    "raises": ("raise RuntimeError('two\\nlines')\n", ["RuntimeError in line 1: two lines"]),
    "leaves": ("import sys\nsys.exit('enough')\n", ["SystemExit in line 2: enough"]),
    "never ends its calls": ("def get_config():\n    return get_config()\n", ["RecursionError"]),
    "imports what is not there": ("import nowhere_to_be_found\n", ["ModuleNotFoundError in line 1"]),
    "a number as get_config": ("get_config = 5\n", ["TypeError", "not callable"]),
    "gives nothing": ("def get_config():\n    pass\n", ["get_config must return a config made by jaxneg.config"]),
    "gives a dict": ("def get_config():\n    return {'seed': 1}\n", ["made by jaxneg.config.base()"]),
    "a misspelt field": (BASE + "    c.batchsize = 3\n    return c\n", ['Did you mean "batch_size"']),
    "a wrong type": (BASE + "    c.batch_size = 'x'\n    return c\n", ["TypeError in line 4"]),
    "a wrong value": (BASE + "    c.batch_size = 0\n    return c\n", ["config.batch_size=0", "1 or more"]),
    "a field more": (BASE + "    c.unlock()\n    c.extra = 1\n    return c\n", ["no field 'extra'"]),
    "a field less": (BASE + "    c.unlock()\n    del c.osf\n    return c\n", ["lacks the fields osf"]),
    "a list": (BASE + "    c.osf = [1]\n    return c\n", ["TypeError in line 4", "'osf'", "list"]),
    "a list, typed anew": (
        BASE + "    c.unlock()\n    del c.osf\n    c.osf = [1]\n    return c\n",
        ["config.osf=[1]", "a number"],
    ),
    "None": (BASE + "    c.unlock()\n    c.osf = None\n    return c\n", ["config.osf=None", "a number"]),
    "text for a group": (
        BASE + "    c.unlock()\n    del c.model\n    c.model = 'x'\n    return c\n",
        ["config.model is a group of fields"],
    ),
    "an unknown model": (
        BASE + "    c.unlock()\n    c.model.name = 'sasrek'\n    return c\n",
        ["unknown model 'sasrek'", "did you mean 'sasrec'"],
    ),
    "a number for the model": (
        BASE + "    c.unlock()\n    del c.model.name\n    c.model.name = [3]\n    return c\n",
        ["unknown model [3]", "known: ", "sasrec"],
    ),
}


@pytest.mark.parametrize("case", CONFIG_FILES)
def test_a_bad_config_file(capsys, tmp_path, case):
    text, says = CONFIG_FILES[case]
    path = tmp_path / "mine.py"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert_refused(capsys, tmp_path, [f"--config={path}"], says)


# ------------------------------------------------------------------ prepared folders


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A raw file and the cache in which it is prepared."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "raw.csv").write_bytes(TABLE)
    prepare.prepare(folder / "raw.csv", columns=("user", "item", "time"), cache_dir=folder / "cache")
    return folder


def change_array(name, change):
    def damage(folder):
        array = np.load(folder / f"{name}.npy")
        np.save(folder / f"{name}.npy", change(array))

    return damage


def change_bytes(name, change):
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def change_meta(change):
    def damage(folder):
        meta = json.loads((folder / "meta.json").read_text())
        change(meta)
        (folder / "meta.json").write_text(json.dumps(meta))

    return damage


class Bait:
    """Pickled, it makes a file where it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (pathlib.Path.touch, (self.path,))


def pickled(folder):
    bait = np.array([Bait(folder.parent / "loaded")], dtype=object)
    np.save(folder / "items.npy", bait, allow_pickle=True)


def sealed(damage):
    """The damage, by somebody who brings meta.json's sizes and checksums in line with it."""

    def forge(folder):
        damage(folder)
        meta = json.loads((folder / "meta.json").read_text())
        for name, stated in meta["arrays"].items():
            content = (folder / f"{name}.npy").read_bytes()
            stated.update(bytes=len(content), crc32=zlib.crc32(content))
        (folder / "meta.json").write_text(json.dumps(meta))

    return forge


def set_at(index, value):
    def change(array):
        array[index] = value
        return array

    return change


def a_file_instead(folder):
    shutil.rmtree(folder)
    folder.touch()


# id -> (what is done to the folder, what the warning says)
DAMAGES = {
    "no meta.json": (lambda folder: (folder / "meta.json").unlink(), ["meta.json", "No such file"]),
    "empty meta.json": (change_bytes("meta.json", lambda b: b""), ["meta.json is damaged"]),
    "meta.json cut short": (change_bytes("meta.json", lambda b: b[:200]), ["meta.json is damaged"]),
    "meta.json of garbage": (change_bytes("meta.json", lambda b: b"\xff\0" * 50), ["meta.json is damaged"]),
    "meta.json of a list": (change_bytes("meta.json", lambda b: b"[1, 2]"), ["meta.json is damaged"]),
    "meta.json nested deeply": (change_bytes("meta.json", lambda b: b"[" * 100_000), ["meta.json is damaged"]),
    "meta.json without checksums": (change_meta(lambda m: m.pop("arrays")), ["meta.json is damaged", "arrays"]),
    "meta.json with text as a count": (change_meta(lambda m: m.update(num_users="7")), ["meta.json is damaged"]),
    "meta.json with another count": (change_meta(lambda m: m.update(num_users=8)), ["the shape and type"]),
    "meta.json of another data set": (change_meta(lambda m: m.update(fingerprint="0" * 16)), ["another fingerprint"]),
    "meta.json without a fingerprint": (change_meta(lambda m: m.pop("fingerprint")), ["another fingerprint, None"]),
    "an array missing": (lambda folder: (folder / "times.npy").unlink(), ["times.npy: cannot be read", "No such file"]),
    "an array cut short": (change_bytes("items.npy", lambda b: b[:-8]), ["items.npy: has 920 bytes, and 928 were"]),
    "an empty array file": (change_bytes("valid_end.npy", lambda b: b""), ["valid_end.npy: has 0 bytes"]),
    "a folder as an array": (
        lambda folder: ((folder / "items.npy").unlink(), (folder / "items.npy").mkdir()),
        ["items.npy: "],
    ),
    "one bit flipped": (
        change_bytes("times.npy", lambda b: b[:-9] + bytes([b[-9] ^ 4]) + b[-8:]),
        ["times.npy: is damaged", "checksum"],
    ),
    "one bit flipped in a header": (
        change_bytes("items.npy", lambda b: b[:20] + bytes([b[20] ^ 4]) + b[21:]),
        ["items.npy: is damaged", "checksum"],
    ),
    "two items exchanged": (change_array("items", lambda a: a[::-1].copy()), ["items.npy: is damaged", "checksum"]),
    "another type": (sealed(change_array("items", lambda a: a.astype(np.int64))), ["items.npy", "'<i4'"]),
    "another shape": (sealed(change_array("items", lambda a: a[None])), ["items.npy", "shape and type ((1, 200)"]),
    "a row less": (sealed(change_array("items", lambda a: a[1:])), ["items.npy: has the shape"]),
    "an item that is not there": (sealed(change_array("items", set_at(3, 12))), ["items goes from 1 to 12", "1 to 11"]),
    "the pad as an item": (sealed(change_array("items", set_at(3, 0))), ["items goes from 0", "allowed are 1 to 11"]),
    "users in disorder": (sealed(change_array("user_start", set_at(3, 5))), ["of user 2", "should ascend"]),
    "users beyond the rows": (sealed(change_array("user_start", set_at(-1, 201))), ["from 0 to 201", "200 rows"]),
    "training beyond its user": (sealed(change_array("train_end", set_at(0, 199))), ["of user 0", "should ascend"]),
    "validation before training": (sealed(change_array("valid_end", set_at(1, 0))), ["of user 1", "should ascend"]),
    "a negative count": (sealed(change_array("item_counts", set_at(1, -1))), ["item_counts goes from -1"]),
    "more users than there are": (sealed(change_array("item_counts", set_at(1, 8))), ["item_counts", "to 8", "0 to 7"]),
    "an unknown cohort": (sealed(change_array("item_cohorts", set_at(1, 3))), ["item_cohorts", "to 3", "0 to 2"]),
    "a pickled array": (pickled, ["items.npy: has "]),
    "a pickled array, sealed": (sealed(pickled), ["items.npy: is not an array that can be read", "Python objects"]),
    "a zip as an array": (sealed(change_bytes("items.npy", lambda b: zipped(("a.npy", b)))), ["items.npy: is not an"]),
    "text as an array": (sealed(change_bytes("items.npy", lambda b: b"1,2,3\n")), ["items.npy: is not an array"]),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_folder_is_refused_when_read_and_made_again_from_the_raw_file(capsys, prepared, tmp_path, case):
    damage, says = DAMAGES[case]
    cache = tmp_path / "cache"
    shutil.copytree(prepared / "cache", cache)
    (folder,) = cache.iterdir()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    capsys.readouterr()
    damage(folder)
    if "fingerprint" not in says[0]:  # of which only the caller knows what it should be
        with pytest.raises(InputError) as error:
            data.load(folder)
        assert str(error.value).startswith(str(folder)) and all(words in str(error.value) for words in says)
    assert prepare.prepare(prepared / "raw.csv", columns=("user", "item", "time"), cache_dir=cache) == folder
    warning, done = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"jaxneg: {folder}") and warning.endswith("; it is made again")
    assert all(words in warning for words in says) and "prepared 200" in done
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(cache.iterdir()) == [folder]  # and no file that a loaded pickle would have made


def test_the_pickled_array_would_do_harm_if_it_were_loaded(tmp_path):
    (tmp_path / "folder").mkdir()
    pickled(tmp_path / "folder")
    np.load(tmp_path / "folder" / "items.npy", allow_pickle=True)
    assert (tmp_path / "loaded").exists()


def test_a_sound_folder_of_others_is_used_and_a_closed_cache_refused(public_folder, capsys):
    raw_file, cache = public_folder / "raw.csv", public_folder / "cache"
    raw_file.write_bytes(TABLE)
    arguments = {"columns": ("user", "item", "time"), "cache_dir": cache}
    folder = prepare.prepare(raw_file, **arguments)
    cache.chmod(0o555)
    with ordinary_user():
        assert prepare.prepare(raw_file, **arguments) == folder
        with pytest.raises(InputError, match="cache_dir .*cache cannot be written .Permission denied.: name a folder"):
            prepare.prepare(raw_file, prepare.PrepareSettings(min_item_rows=1), **arguments)
    cache.chmod(0o755)
    assert list(cache.iterdir()) == [folder]


def test_a_cache_that_is_a_file_or_a_link_to_nothing(capsys, tmp_path):
    (tmp_path / "raw.csv").write_bytes(TABLE)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name, says in (("file", "File exists"), ("file/below", "Not a directory"), ("link", "File exists")):
        args = [INTERACTIONS, *COLUMNS, f"--config.data.path={tmp_path}/raw.csv"]
        args += [f"--config.data.cache_dir={tmp_path}/{name}"]
        assert_refused(capsys, tmp_path, args, [f"cache_dir {tmp_path}/{name} cannot be written ({says})"])


# ------------------------------------------------------------------ a full disk


def test_a_full_disk(capsys, tmp_path, monkeypatch):
    written = []

    def full(self, content):
        written.append(len(content))
        if len(written) > 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._file.write(content)
        self.bytes += len(content)

    (tmp_path / "raw.csv").write_bytes(TABLE)
    monkeypatch.setattr(store._Summed, "write", full)
    args = [INTERACTIONS, *COLUMNS, f"--config.data.path={tmp_path}/raw.csv"]
    says = [f"cache_dir {tmp_path}/cache cannot be written (No space left on device)", "--config.data.cache_dir=DIR"]
    preparing = len(written)
    assert main.main(["main.py", *args, f"--workdir={tmp_path}/run", f"--config.data.cache_dir={tmp_path}/cache"]) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert all(words in last for words in says) and len(written) == preparing + 10
    assert list((tmp_path / "cache").iterdir()) == [] and not (tmp_path / "run").exists()


def test_files_may_not_grow_beyond_a_limit(tmp_path):
    """The system itself refuses to write, in the middle of an array."""
    rows = [(n % 500, n % 90, n) for n in range(60_000)]
    (tmp_path / "raw.csv").write_bytes(lines("{u},{i},{t}\n", "user,item,time\n", rows))
    args = [
        "main.py",
        INTERACTIONS,
        *COLUMNS,
        f"--config.data.path={tmp_path}/raw.csv",
        f"--config.data.cache_dir={tmp_path}/cache",
        f"--workdir={tmp_path}/run",
    ]
    code = (
        "import resource, sys; from jaxneg import main; from jaxneg.run import experiment; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); sys.exit(main.main({args!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    *_, last = done.stderr.splitlines()
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert last.startswith(f"jaxneg: cache_dir {tmp_path}/cache cannot be written (File too large)")
    assert list((tmp_path / "cache").iterdir()) == [] and not (tmp_path / "run").exists()


def test_too_little_memory_is_one_line(capsys, tmp_path, monkeypatch):
    def run(config, workdir, extend, join_hosts):
        np.empty(2**60, np.int8)

    monkeypatch.setattr(experiment, "run", run)
    assert_refused(capsys, tmp_path, [QUICKSTART], ["not enough memory", "Unable to allocate 1.00 EiB"])


# ------------------------------------------------------------------ tables of results


@pytest.fixture(scope="module")
def finished():
    return ROOT / "results" / "eight_methods" / "ml1m" / "uniform"


def rows_of(finished):
    return (finished / "results.csv").read_bytes().splitlines(keepends=True)


# id -> (how results.csv is made of its lines, what the line says)
TABLES = {
    "empty": (lambda rows: b"", ["results.csv: is not a table as a run writes it"]),
    "a header only": (lambda rows: rows[0], ["results.csv: has a header and no row", "one row per seed"]),
    "garbage": (lambda rows: bytes(range(256)) * 9, ["is not a table as a run writes it"]),
    "NUL bytes": (lambda rows: bytes(500), ["is not a table as a run writes it"]),
    "UTF-16": (lambda rows: b"".join(rows).decode().encode("utf-16"), ["is not a table as a run writes it"]),
    "another table": (lambda rows: b"a,b\n1,2\n", ["no column dataset, method, seed"]),
    "JSON": (lambda rows: b'{"seed": 1}\n', ["is not a table as a run writes it"]),
    "cut in a row": (lambda rows: b"".join(rows)[:-300], ["row 2 has ", "fields, and the header has "]),
    "a field more": (lambda rows: rows[0] + rows[1][:-1] + b",5\n", ["row 1 has ", "and the header has "]),
    "text as a number": (lambda rows: rows[0] + rows[1].replace(b",0.0", b",many", 1), ["is 'many", "a number"]),
    "a huge number": (lambda rows: rows[0] + rows[1].replace(b",ok,", b",ok," + b"9" * 400, 1), ["is '9999", "number"]),
    "no method": (lambda rows: rows[0] + rows[1].replace(b"uniform", b""), ["row 1: method is empty"]),
    "an open quote": (lambda rows: rows[0] + b'"' + rows[1], ["is not a table as a run writes it"]),
    "an endless field": (lambda rows: rows[0] + b"x" * 200_000 + b"\n", ["is not a table", "field limit"]),
}


@pytest.mark.parametrize("case", TABLES)
@pytest.mark.parametrize("name", ["results.csv", "baselines.csv"])
def test_a_broken_table(capsys, finished, tmp_path, name, case):
    change, says = TABLES[case]
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(change(rows_of(finished)))
    assert table.main([str(tmp_path)]) == 2
    assert_one_line(capsys, [f"{tmp_path}/run/{name}: ", *(words.replace("results.csv", name) for words in says)])


RESULT_FOLDERS = {
    "no such folder": (lambda folder: ["nowhere"], ["nowhere: there is no such folder"]),
    "an empty folder": (lambda folder: [str(folder)], ["no results.csv in or below it"]),
    "a file": (lambda folder: [__file__], ["there is no such folder"]),
    "a name too long": (lambda folder: ["x" * 5000], ["xxx"]),
    "a NUL": (lambda folder: ["a\0b"], ["a\\x00b: "]),
    "no folder named": (lambda folder: [], ["the following arguments are required: DIR"]),
    "an unknown flag": (lambda folder: ["--all", "x"], ["unrecognized arguments: --all"]),
    "a folder as results.csv": (
        lambda folder: (folder / "results.csv").mkdir() or [str(folder)],
        ["results.csv: is not a table as a run writes it"],
    ),
    "an empty results.csv": (
        lambda folder: (folder / "results.csv").touch() or [str(folder)],
        ["results.csv: is not a table as a run writes it"],
    ),
}


@pytest.mark.parametrize("case", RESULT_FOLDERS)
def test_a_wrong_folder_of_results(capsys, tmp_path, case):
    make, says = RESULT_FOLDERS[case]
    assert table.main(make(tmp_path)) == 2
    assert_one_line(capsys, says)


# ------------------------------------------------------------------ the other commands

TOOLS = {
    "synthetic: no file": (synthetic, ["--rows=5"], ["required: --out"]),
    "synthetic: negative rows": (synthetic, ["--rows=-5", "--out=x.csv"], ["--rows=-5", "from 1 to 2^31 - 1"]),
    "synthetic: too many rows": (synthetic, ["--rows", "9" * 400, "--out=x.csv"], ["--rows=999", "2^31 - 1"]),
    "synthetic: text as rows": (synthetic, ["--rows=many", "--out=x.csv"], ["--rows: invalid int value: 'many'"]),
    "synthetic: one item": (synthetic, ["--rows=90", "--items=1", "--out=x.csv"], ["num_items is 1", "from 2"]),
    "synthetic: no days": (synthetic, ["--rows=90", "--days=nan", "--out=x.csv"], ["days is nan", "a number > 0"]),
    "synthetic: an unknown kind": (synthetic, ["--rows=90", "--out=x.xlsx"], ["out is x.xlsx", ".parquet, .csv"]),
    "synthetic: no such folder": (synthetic, ["--rows=90", "--out=no/such/x.csv"], ["out no/such/x.csv cannot be"]),
    "download: nothing": (download, [], ["required: dataset"]),
    "download: an unknown file": (download, ["ml-2m"], ["invalid choice: 'ml-2m'", "ml-1m"]),
    "download: a file that needs a login": (download, ["retailrocket", "--out=no/such"], ["events.csv needs a login"]),
    "download: a file as folder": (download, ["ml-1m", f"--out={__file__}"], ["cannot be written"]),
    "download: a NUL": (download, ["ml-1m", "--out=a\0b"], ["out a\\x00b cannot be written"]),
}


@pytest.mark.parametrize("case", TOOLS)
def test_a_bad_command_line_of_the_other_commands(capsys, tmp_path, monkeypatch, case):
    tool, args, says = TOOLS[case]
    monkeypatch.chdir(tmp_path)
    assert tool.main(args) == 2
    assert_one_line(capsys, says)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ no pickle, nothing evaluated

FORBIDDEN_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "torch"}
FORBIDDEN_CALLS = {"eval", "exec", "read_pickle", "to_pickle", "fromfile"}


def risks(source: str) -> list[str]:
    """The places in a Python source that could run what a data file holds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"line {node.lineno}: import {name}" for name in names if name.split(".")[0] in FORBIDDEN_MODULES]
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = getattr(getattr(node.func, "value", None), "id", "")
        if called in FORBIDDEN_CALLS and owner != "re":
            found.append(f"line {node.lineno}: {called}")
        if called == "load" and owner in ("np", "numpy"):
            allow = {keyword.arg: keyword.value for keyword in node.keywords}.get("allow_pickle")
            if not (isinstance(allow, ast.Constant) and allow.value is False):
                found.append(f"line {node.lineno}: np.load without allow_pickle=False")
    return found


def test_nothing_in_jaxneg_loads_a_pickle_or_evaluates_text():
    """But jaxneg's own source: the classes of settings are read from it without importing what stands beside them."""
    root = pathlib.Path(jaxneg.__file__).parent
    sources = sorted(root.rglob("*.py"))
    assert len(sources) > 20
    found = {str(path.relative_to(root)): risks(path.read_text()) for path in sources}
    of_fields = found.pop("fields.py")
    assert len(of_fields) == 1 and of_fields[0].endswith(": exec")
    assert {name: risky for name, risky in found.items() if risky} == {}
    readers = re.compile(r"\b(read_names|declared)\(")
    assert [name for name in found if readers.search((root / name).read_text())] == ["settings.py"]


def test_the_settings_are_read_from_files_of_jaxneg_only():
    root = pathlib.Path(jaxneg.__file__).parent
    read = [settings.SAMPLERS, settings.LOSS_FILE, *settings.MODEL_FILES.values()]
    assert all(path.resolve().is_relative_to(root.resolve()) and path.is_file() for path in read)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from torch import load",
        "import numpy as np\nnp.load('x')",
        "np.load('x', allow_pickle=True)",
        "np.load('x', allow_pickle=flag)",
        "pd.read_pickle('x')",
        "eval('1')",
        "exec(text)",
        "import joblib.numpy_pickle",
    ],
)
def test_the_search_for_pickles_finds_them(source):
    assert len(risks(source)) == 1
