"""Version 2 of rendered bodies: backgrounds, cameras, photographs; version 1 stays."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

import bodymodels
from sets import painting
from sets.rendered_bodies import RenderedBodies

ROOT = Path(__file__).parent.parent


def bodies(**options):
    return RenderedBodies("train", 48, length=30, **options)


def test_another_process_renders_the_same_bits():
    """The textures that a process draws once do not depend on what it drew before."""
    program = ("import hashlib, torch; torch.set_num_threads(1);"
               "from sets.rendered_bodies import RenderedBodies;"
               "d = RenderedBodies('train', 48, length=30);"
               "print(hashlib.sha256(b''.join(d.render(i).tobytes() for i in range(9)))"
               ".hexdigest())")
    other = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True,
                           capture_output=True, text=True).stdout.strip()
    records = {i: bodies().render(i).tobytes() for i in reversed(range(9))}
    assert hashlib.sha256(b"".join(records[i] for i in range(9))).hexdigest() == other


def test_held_out_photographs_are_never_in_training():
    """Training and test share no photograph; a fifth is held out; the list names every file."""
    files = {path.stem for path in (bodymodels.ASSETS / "backgrounds").glob("*.jpg")}
    assert set(painting.TEST_PHOTOGRAPHS) | set(painting.SURFACES) <= files
    assert len(painting.TEST_PHOTOGRAPHS) / len(files) == pytest.approx(0.2, abs=0.03)
    listed = (bodymodels.ASSETS / "README.md").read_text()
    assert all(f"`{name}`" in listed for name in files)
    used = {}
    for split in ("train", "test"):
        surfaces = painting.textures(split)[6 * painting.COPIES:]  # after the drawn ones
        used[split] = {picture.tobytes() for picture in (*painting.photographs(split), *surfaces)}
    assert not used["train"] & used["test"]
    assert len(used["train"] | used["test"]) == len(files)
    assert len(used["test"]) == len(painting.TEST_PHOTOGRAPHS)
