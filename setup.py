"""Makes the README fit for a package index, where links relative to the repository lead nowhere.

All else of the package is in pyproject.toml; so is the address of the documentation.
"""

import re
import tomllib
from pathlib import Path

import setuptools

ROOT = Path(__file__).parent
PAGES = {"CHANGELOG.md": "changes.html"}
"""Addresses on the site of files that are not under docs/."""


def readme() -> str:
    """README.md with links to the site. What is not on the site is named without a link."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    site = urls["Documentation"]

    def absolute(found: re.Match[str]) -> str:
        mark, words, place, anchor = found.groups()
        if ":" in place:
            return found[0]
        if mark:
            return f"![{words}]({site}_images/{Path(place).name})"
        page = PAGES.get(place) or (place[len("docs/") : -len(".md")] + ".html" if place.startswith("docs/") else None)
        return f"[{words}]({site}{page}{anchor or ''})" if page else words

    text = re.sub(r"<!--.*?-->\n", "", (ROOT / "README.md").read_text(encoding="utf-8"))
    return re.sub(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)]*)?\)", absolute, text)


if __name__ == "__main__":
    setuptools.setup(long_description=readme(), long_description_content_type="text/markdown")
