"""The README as a package index shows it has no link that leads nowhere."""

import importlib.util
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SITE = "https://skipwise.readthedocs.io/en/latest/"


def setup() -> Any:
    spec = importlib.util.spec_from_file_location("skipwise_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_of_the_index_lead_to_pages_of_the_site() -> None:
    text = setup().readme()
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)]*)\)", text)
    assert len(links) > 8
    assert [link for _, link in links if not link.startswith("https://")] == []
    assert "<!--" not in text
    for image, link in links:
        place = link.removeprefix(SITE).partition("#")[0]
        if image:
            # Sphinx collects the images that pages show.
            name = place.removeprefix("_images/")
            assert f"images/{name}" in (ROOT / "docs" / "index.md").read_text()
        elif place != link:
            assert (ROOT / "docs" / place.replace(".html", ".md")).is_file(), link
