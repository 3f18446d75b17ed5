"""Make recordings: ``python -m normlib.recordings [--parts FOLDER] [name …]``.

Without names: those that are missing or made by another version of the algorithm. While a
recording is made its parts lie in FOLDER/<name>, and an interrupted one goes on where it stopped.
"""

import argparse
from pathlib import Path

from normlib.recordings import DEFINITIONS, FOLDER, outdated, record

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("names", nargs="*")
parser.add_argument("--parts", type=Path, default=Path("_build/recordings"))
arguments = parser.parse_args()
missing = [name for name in DEFINITIONS if not (FOLDER / f"{name}.nc").exists()]
for wanted in arguments.names or [*missing, *outdated()]:
    print(f"recording {wanted}", flush=True)
    record(wanted, arguments.parts / wanted)
