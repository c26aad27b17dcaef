"""Puts the repository on the path and makes every run of the suite the same run."""

import sys
from pathlib import Path

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


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: more than ten seconds on two cores (CI runs it too)")
