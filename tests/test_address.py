"""With a public address the pages have a sitemap and previews; without one nothing of it."""

import os
import subprocess
import sys

import matplotlib.pyplot as plt
import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize("address", ["", "https://example.org/book/"])
def test_previews_and_sitemap_need_an_address(tmp_path, address):
    (tmp_path / "index.rst").write_text("A & B\n=====\n\nA first sentence,\nin two lines.\n")
    subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "-C", tmp_path, tmp_path / "html",
         "-D", "extensions=nl_address", "-D", "html_theme=basic",
         "-D", "html_title=A book", "-D", f"html_baseurl={address}"],
        env=os.environ | {"PYTHONPATH": str(ROOT / "book/_ext")}, check=True,
    )  # fmt: skip
    page = (tmp_path / "html/index.html").read_text(encoding="utf-8")
    sitemap, picture = tmp_path / "html/sitemap.xml", tmp_path / "html/_static/preview.png"
    assert sitemap.exists() == picture.exists() == ("og:" in page) == bool(address)
    if address:
        assert "<loc>https://example.org/book/index.html</loc>" in sitemap.read_text()
        assert plt.imread(picture).shape[:2] == (630, 1200)
        for name, text in {
            "title": "A &amp; B",
            "description": "A first sentence, in two lines.",
            "url": "https://example.org/book/index.html",
            "image": "https://example.org/book/_static/preview.png",
        }.items():
            assert f'<meta property="og:{name}" content="{text}">' in page
