"""Makes the long texts that SmolLM2's arms are trained and measured on, from Debian's packages and installed libraries.

python benchmarks/long_texts.py FOLDER [MODEL]

    FOLDER/packages/    60 MB of packages, downloaded unless they are there
    FOLDER/train/       prose to train on: manuals of ten packages; sources come from Python's own standard library
    FOLDER/measured/    eight texts to measure: four manuals of other packages, four sources of other projects
    FOLDER/untrained/   MODEL with YaRN to 32k and no training, which chooses the key tokens of LongPPL for all arms

Training and measured texts share no package and no project. Prints the SHA-256 of each measured text.
"""

import gzip
import hashlib
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from skipwise import INTERPOLATIONS, RunConfig, load_model
from skipwise.model import original_window, read_config, save_model

TRAINED = {
    "apache2-doc": "usr/share/doc/apache2-doc/manual/en/**/*.html",
    "bash-doc": "usr/share/doc/bash-doc/*.html",
    "exim4-doc-html": "usr/share/doc/exim4-doc-html/spec_html/ch-[!io]*.html",
    "git-doc": "usr/share/doc/git-doc/*.html",
    "lilypond-doc-html": "usr/share/doc/lilypond/html/Documentation/[clnu]*[!l]-big-page.html",
    "maxima-doc": "usr/share/maxima/*/doc/html/maxima_singlepage.html",
    "postgresql-doc-15": "usr/share/doc/postgresql-doc-15/html/*.html",
    "python3.11-doc": "usr/share/doc/python3.11/html/**/*.html",
    "sbcl-doc": "usr/share/doc/sbcl/sbcl.html",
    "sqlite3-doc": "usr/share/doc/sqlite3/[!r]*.html",
}
"""Packages to train on, and their English manuals."""

# The lines before are titles, licences and tables of contents, which any model repeats easily.
PROSE = {
    "debian-reference-en": ("usr/share/debian-reference/debian-reference.en.txt.gz", 676),
    "debian-policy": ("usr/share/doc/debian-policy/policy.txt.gz", 707),
    "installation-guide-amd64": ("usr/share/doc/installation-guide-amd64/en/install.en.txt.gz", 261),
    "developers-reference": ("usr/share/developers-reference/developers-reference.txt.gz", 596),
}
"""Packages to measure on: a text each, and its first line."""

SOURCES = {
    "matplotlib": "axes/_axes.py",
    "sklearn": "utils/estimator_checks.py",
    "scipy": "stats/_continuous_distns.py",
    "pandas": "core/frame.py",
}
"""Projects to measure on: a file each."""

_LEAST_BYTES = 80_000


def main(folder: Path, model: str | None = None) -> None:
    """Writes the folders."""
    packages = folder / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    for package in (*TRAINED, *PROSE):
        _unpack(package, packages)
    for package, pattern in TRAINED.items():
        for file in sorted((packages / package).glob(pattern)):
            if file.is_file() and file.stat().st_size >= _LEAST_BYTES:
                place = folder / "train" / package / file.name
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place)
    measured = folder / "measured"
    measured.mkdir(exist_ok=True)
    for package, (name, first) in PROSE.items():
        lines = gzip.decompress((packages / package / name).read_bytes()).decode().splitlines(keepends=True)
        (measured / f"{package}.txt").write_text("".join(lines[first - 1 :]), encoding="utf-8")
    for project, name in SOURCES.items():
        found = importlib.util.find_spec(project)
        if found is None or found.origin is None:
            sys.exit(f"{project} is not installed: pip install {project}")
        shutil.copyfile(Path(found.origin).parent / name, measured / f"{project}.py.txt")
    for file in sorted(measured.iterdir()):
        print(hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_size, file.name)
    if model is not None:
        window = RunConfig.from_mapping({"model": model, "target": "32k"}).resolve_window(
            original_window(read_config(model))
        )
        save_model(
            *load_model(model, dtype="bfloat16", interpolation=INTERPOLATIONS["yarn"](), window=window),
            folder / "untrained",
        )


def _unpack(package: str, packages: Path) -> None:
    if not list(packages.glob(f"{package}_*.deb")):
        subprocess.run(["apt-get", "download", package], cwd=packages, check=True)
    (archive,) = packages.glob(f"{package}_*.deb")
    subprocess.run(["dpkg-deb", "-x", archive, packages / package], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
