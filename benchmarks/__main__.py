"""Run one benchmark: python -m benchmarks NAME [options]

simplehand, genhmr, bodymodels and metrics measure speed beside the usual code; gpu measures all
that needs a GPU; resume kills training runs and compares their weights. `--help` behind a name
lists its options. Times are medians of interleaved runs on the machine at hand.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAMES = sorted(file.stem for file in HERE.glob("*.py")
               if file.stem not in ("__init__", "__main__", "timing"))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("options", nargs=argparse.REMAINDER, help="options of that benchmark")
    arguments = parser.parse_args(argv)
    importlib.import_module(f"benchmarks.{arguments.name}").main(arguments.options)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))  # for `python path/to/benchmarks` from another folder
    main()
