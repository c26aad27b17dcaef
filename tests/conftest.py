"""Puts the repository on the path and makes every run of the suite the same run."""

import copy
import gc
import pickle
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

settings.register_profile(
    "reference",
    deadline=None,  # no test asserts a time
    derandomize=True,
    max_examples=30,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("reference")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the slow tests too, as CI does")


def pytest_collection_finish(session):
    """Collect garbage more rarely, without what is imported by now: else a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: python -m pytest --slow"))


def pytest_configure(config):
    import torch

    from tasks.ranks import keep_freed_memory
    torch.set_num_threads(1)  # these networks are tiny: two threads need more time than one
    keep_freed_memory()
    config.addinivalue_line("markers", "slow: long, or several processes; skipped without --slow")


@pytest.fixture(autouse=True, scope="session")
def free_models():
    """The free body models are read once: whoever loads one gets a copy."""
    import bodymodels
    load, models = bodymodels.load_model, {}

    def load_model(source="hand_right", **options):
        if options or source not in bodymodels.FREE_MODELS:
            return load(source, **options)
        if source not in models:
            models[source] = load(source)
        return copy.deepcopy(models[source])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bodymodels, "load_model", load_model)
        yield


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random numbers, whichever ran before it."""
    import torch
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def lively():
    """A tiny GenHMR whose probabilities differ from token to token."""
    from genhmr_samples import lively_model
    return lively_model()


@pytest.fixture(scope="module")
def body():
    """The free body with GenHMR's 45 keypoints."""
    import bodymodels
    return bodymodels.load_model("body")


@pytest.fixture
def undrawn(monkeypatch):
    """Leaves out the pictures, which take most of the time of a tiny run."""
    for name in ("tasks.files.draw_predictions", "tasks.files.draw_curves"):
        monkeypatch.setattr(name, lambda *_: None)


@pytest.fixture(scope="module")
def few_vertices():
    """SMPL-X's landmarks are those of `write_few_vertices`: whole bodies would cost too much."""
    import bodymodels
    from sets.rendered_bodies import body_surface
    body_surface("wholebody")  # cached with its own landmarks, for the tests that come later
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(bodymodels.SURFACE_VERTEX_IDS, "smplx", tuple(range(21)))
        yield


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """The folder of body models with official names."""
    from official_folders import write_models
    folder = tmp_path_factory.mktemp("models")
    write_models(folder)
    return folder


@pytest.fixture(scope="session")
def official_models(tmp_path_factory):
    """The free models under the official names, where the smplx package looks for them."""
    import bodymodels
    folder = tmp_path_factory.mktemp("free_models")
    for path, name in (("mano/MANO_RIGHT", "hand_right"), ("mano/MANO_LEFT", "hand_left"),
                       ("smpl/SMPL_NEUTRAL", "body"), ("smplx/SMPLX_NEUTRAL", "wholebody")):
        file = (folder / path).with_suffix(".pkl" if name == "body" else ".npz")
        file.parent.mkdir(exist_ok=True)
        if name == "body":  # the package reads SMPL from pickles alone
            file.write_bytes(pickle.dumps(bodymodels.load_arrays(bodymodels.ASSETS / "body.npz")))
        else:
            file.symlink_to(bodymodels.ASSETS / f"{name}.npz")
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """folders(NAME): the data set's folder, written once. Tests must not change it."""
    from official_folders import WRITERS
    base, done = tmp_path_factory.mktemp("datasets"), set()

    def folder(name):
        if name not in done:
            (base / name).mkdir()
            WRITERS[name](base / name)
            done.add(name)
        return base / name

    return folder


@pytest.fixture
def fresh(folders, tmp_path):
    """fresh(NAME): a copy of the data set's folder that a test may change."""
    def folder(name):
        return shutil.copytree(folders(name), tmp_path / name, symlinks=True,
                               ignore=shutil.ignore_patterns("*.bin"))
    return folder
