"""The command: ``python -m normlib audit MODEL`` and ``diff OLD NEW``. Knows the audit only."""

import sys

from normlib.diagnostics.command import main

sys.exit(main(sys.argv[1:]))
