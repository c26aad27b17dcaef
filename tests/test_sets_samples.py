"""Packed files: built once, rebuilt if damaged, safe if killed."""

import subprocess
import sys
import time

import numpy as np
import pytest
from set_samples import ROOT, digest, hands

from sets.samples import build_packed


def test_cache_is_built_by_all_cores_alike(tmp_path):
    """A split large enough for worker processes is packed in order."""
    cached, plain = hands(size=16, length=260, cache=tmp_path), hands(size=16, length=260)
    for index in (0, 31, 32, 100, 255, 259):
        assert digest(cached[index]) == digest(plain[index])


def test_a_killed_rendering_continues(tmp_path):
    """Whole records that a killed builder left count, and others are made: the same bits. A file
    that was cut off, by a copy for example, is replaced."""
    path = hands(length=5, cache=tmp_path).path
    whole = path.read_bytes()
    record = len(whole) // 5
    for left in (len(whole), 2 * record, 3 * record - 7, 20, 0):
        path.write_bytes(whole[:-100])
        part = bytearray(whole[:left])
        if left >= record:
            part[0] ^= 1  # shows who made the first record
        path.with_suffix(".part").write_bytes(part)
        hands(length=5, cache=tmp_path)
        made = path.read_bytes()
        assert sum(a != b for a, b in zip(made, whole, strict=True)) == int(left >= record)
        assert {file.suffix for file in tmp_path.iterdir()} == {".bin", ".lock"}


@pytest.mark.slow
def test_ranks_may_build_at_once(tmp_path):
    """Processes that want the same file at the same moment build it once and agree."""
    program = ("import numpy, pathlib, sys, time\nfrom sets.samples import build_packed\n"
               "def chunks(start):\n"
               "    open(sys.argv[1] + '/built', 'a').write('x'); time.sleep(0.3)\n"
               "    yield numpy.arange(1000)\n"
               "r = build_packed(pathlib.Path(sys.argv[1]) / 'x.bin', numpy.dtype('i8'), "
               "chunks)\nprint(int(r.sum()))")
    runs = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT,
                             stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [run.communicate()[0].strip() for run in runs] == ["499500"] * 3
    assert (tmp_path / "built").read_text() == "x"


WORKER = """
import pathlib, sys, numpy
from torch.utils.data import DataLoader
from sets.samples import build_packed
from sets.samples import follow_parent
def large(batch):
    return numpy.zeros(10**6)  # does not fit into the pipe: the worker blocks while it writes
def chunks(start):
    for batch in DataLoader(range(9**9), num_workers=1, collate_fn=large,
                            worker_init_fn=follow_parent):
        pathlib.Path(sys.argv[1]).with_suffix(".ready").touch()
        yield numpy.zeros(0, "i8")
build_packed(pathlib.Path(sys.argv[1]), numpy.dtype("i8"), chunks)
"""


@pytest.mark.slow
def test_a_killed_builder_leaves_neither_lock_nor_worker(tmp_path):
    """The next builder waits for a living one, says so, and goes on as soon as that is killed."""
    path = tmp_path / "x.bin"
    with subprocess.Popen([sys.executable, "-c", WORKER, str(path)], cwd=ROOT,
                          stderr=subprocess.PIPE, text=True) as first:
        while not path.with_suffix(".ready").exists():
            time.sleep(0.05)
        second = subprocess.Popen(
            [sys.executable, "-c", "import numpy, pathlib, sys\n"
             "from sets.samples import build_packed\n"
             "path, kind = pathlib.Path(sys.argv[1]), numpy.dtype('i8')\n"
             "build_packed(path, kind, lambda start: [numpy.full(3, 5)])",
             str(path)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        assert second.stderr.readline() == (
            "waiting for another process that renders or packs x.bin\n")
        assert second.poll() is None
        first.kill()
        assert second.communicate(timeout=60)[1] == "" and second.returncode == 0
        assert np.fromfile(path, np.int64).tolist() == [5, 5, 5]
        first.communicate(timeout=60)  # returns when the worker, too, has closed its stderr


def test_unwritable_cache_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write the cache.*give cache=FOLDER"):
        hands(length=2, cache=tmp_path / "file" / "inside")
    with pytest.raises(ValueError, match="GB, more than its disk has left: give cache=FOLDER"):
        build_packed(tmp_path / "huge.bin", np.dtype("i8"), lambda start: [], 1 << 58)
