"""Chapters under nbval: nobody watches, and several chapters run side by side already."""

import os

os.environ["NORMLIB_PROGRESS"] = "0"
os.environ["NORMLIB_JOBS"] = "1"
