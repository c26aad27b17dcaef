"""Speed beside the usual code, on a GPU if there is one. Times are medians of interleaved runs.

alarms says how often the warnings of demo.py are right; gpu also measures training.
"""

import argparse
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

FUNCTIONS = {name: f"benchmarks.speed:time_{name}"
             for name in ("simplehand", "genhmr", "geometry", "gpu")}
FUNCTIONS["alarms"] = "benchmarks.alarms:run"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("name", choices=FUNCTIONS)
    add("--preset", default="paper", help="of a paper's model (default: paper)")
    add("--seconds", type=float, default=4.0, help="per measurement (default: 4)")
    add("--count", type=int, default=200, help="alarms: images (default: %(default)s)")
    arguments = parser.parse_args(argv)
    pkgutil.resolve_name(FUNCTIONS[arguments.name])(arguments)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # from another folder, too
    main()
