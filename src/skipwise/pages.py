"""Addresses of the pages about verdicts and refusals, in the documentation that the package's metadata names."""


def page_address(name: str) -> str:
    """The address of a page, `https://.../messages/NAME.html`; without metadata, its place in the documentation.

    Args:
        name: of a verdict, or `page` of an error.
    """
    documentation = _documentation()
    if not documentation:
        return f"messages/{name} in the documentation of skipwise"
    return f"{documentation.rstrip('/')}/messages/{name}.html"


def read_on(name: str) -> str:
    """The line that says where to read about a verdict or refusal."""
    return f"read on: {page_address(name)}"


def _documentation() -> str:
    """The address under `[project.urls]` of pyproject.toml; empty if what is installed does not say."""
    from importlib import metadata  # Here, since only what went wrong needs it.

    try:
        links = metadata.metadata("skipwise").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        return ""
    return dict(link.split(", ", 1) for link in links).get("Documentation", "")
