"""Speed beside the usual code, on a GPU if there is one. Times are medians of interleaved runs.

tradeoff draws SimpleHand's error against its time, of models that tables.py has trained (table7,
table1); alarms says how often demo.py is right; gpu also measures training.
"""

import argparse
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

FUNCTIONS = {name: f"benchmarks.speed:time_{name}"
             for name in ("simplehand", "genhmr", "geometry", "gpu")}
FUNCTIONS |= {name: f"benchmarks.{name}:run" for name in ("tradeoff", "alarms")}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("name", choices=FUNCTIONS)
    add("--preset", default="paper", help="of a paper's model (default: paper)")
    add("--seconds", type=float, default=4.0, help="per measurement (default: 4)")
    add("--count", type=int, default=200, help="alarms: images (default: %(default)s)")
    add("--runs", type=Path, default="runs/simplehand-tables",
        help="tradeoff: the folder of tables.py's runs (default: %(default)s)")
    arguments = parser.parse_args(argv)
    pkgutil.resolve_name(FUNCTIONS[arguments.name])(arguments)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # from another folder, too
    main()
