"""Shows bundles where there is a notebook, prints elsewhere. Knows IPython's display."""

import sys
from typing import Any


def show(bundle: dict[str, str], **metadata: Any) -> None:
    """Show a mime bundle where there is a notebook, else print its text."""
    if "IPython" in sys.modules:  # as it is in every notebook
        from IPython import display, get_ipython

        if get_ipython() is not None:
            display.display(bundle, raw=True, metadata=metadata)
            return
    print(bundle["text/plain"])
