"""The page at `/`: one file with all it needs, under a policy that lets it speak to its own server alone."""

import base64
import hashlib
import re
from importlib import resources

PAGE = resources.files("skipwise.serve").joinpath("page.html").read_text(encoding="utf-8")


def _hashes(tag: str) -> str:
    """The policy's sources for the contents of these tags of the page."""
    bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", PAGE, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies]
    return " ".join(f"'sha256-{digest}'" for digest in digests)


PAGE_POLICY = (
    f"default-src 'none'; script-src {_hashes('script')}; style-src {_hashes('style')}; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of the page."""
