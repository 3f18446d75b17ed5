"""Chapters under nbval: nobody watches, and standard error is compared byte by byte."""

import os

os.environ["NORMLIB_PROGRESS"] = "0"
