"""Make the recordings that are named, or all: ``python -m normlib.recordings [name …]``."""

import sys

from normlib.recordings import DEFINITIONS, record

for wanted in sys.argv[1:] or DEFINITIONS:
    print(f"recording {wanted}", flush=True)
    record(wanted)
