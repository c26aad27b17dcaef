"""Puts the repository on the path and makes every run of the suite the same run."""

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


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: python -m pytest --slow"))


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: long, or several processes; skipped without --slow")
