"""What every doctest may use, in the package and in the tests."""

import pytest

import normlib as nl


@pytest.fixture(autouse=True)
def doctest_names(doctest_namespace):
    doctest_namespace["nl"] = nl
