"""Packages of Debian and its descendants: download, unpack without root, version and licences."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from tqdm import tqdm

from common.errors import UserError

NAME = re.compile(r"[a-z0-9][a-z0-9.+-]+")
NOT_FOUND = ("Unable to locate package", "Can't select", "has no installation candidate", "Couldn't find")
LICENSE = re.compile(r"^\s*License:[ \t]*(\S.*?)\s*$", re.MULTILINE)
POLL_SECONDS = 0.2


class PackageNotFoundError(UserError):
    """apt knows no package of this name."""


def check_package_name(name: str) -> None:
    """Refuse what is not the name of a Debian package, an option of a command for one."""
    if not NAME.fullmatch(name):
        raise UserError(f"expected the name of a Debian package (a-z, 0-9, '.', '+' and '-'), got {name!r}")


def require_debian_tools() -> None:
    """Check that packages can be downloaded and unpacked here."""
    missing = [tool for tool in ("apt-get", "dpkg", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise UserError(f"expected {' and '.join(missing)}, to fetch packages of Debian or Ubuntu; they are not here")


def download_package(name: str, folder: Path) -> Path:
    """Download a package into an empty folder, with a progress bar, and return its file.

    Raises:
        PackageNotFoundError: apt does not know the package; its lists may be missing or old.
        UserError: the name is none, or the download failed.
    """
    check_package_name(name)
    size = _package_size(name)
    process = subprocess.Popen(
        ["apt-get", "download", name], cwd=folder, env=_english(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        with tqdm(total=size or None, desc=f"download {name}", unit="B", unit_scale=True) as bar:
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                bar.update(sum(file.stat().st_size for file in folder.glob("*.deb")) - bar.n)
            bar.update(sum(file.stat().st_size for file in folder.glob("*.deb")) - bar.n)
        assert process.stderr is not None
        message = process.stderr.read().decode(errors="replace")
    finally:
        process.kill()
        process.wait()
    files = list(folder.glob("*.deb"))
    if process.returncode or len(files) != 1:
        raise UserError(f"apt-get download {name} failed: {_last_line(message)}")
    return files[0]


def unpack_package(file: Path, folder: Path) -> None:
    """Unpack a package's files below a folder; nothing of it is run."""
    _output(["dpkg", "-x", str(file), str(folder)])


def package_version(file: Path) -> str:
    """Return the version of a downloaded package."""
    return _output(["dpkg-deb", "-f", str(file), "Version"]).strip()


def licenses(copyright_text: str) -> list[str]:
    """Return the licences that a copyright file in Debian's format names, sorted."""
    return sorted(set(LICENSE.findall(copyright_text)))


def _package_size(name: str) -> int:
    """Return the bytes of a package, from a line URI FILE SIZE HASH."""
    words = _output(["apt-get", "--print-uris", "download", name]).split()
    return int(words[2]) if len(words) > 2 and words[2].isdecimal() else 0


def _output(arguments: list[str]) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, errors="replace", env=_english())
    if not done.returncode:
        return done.stdout
    message = _last_line(done.stderr)
    error = PackageNotFoundError if any(text in message for text in NOT_FOUND) else UserError
    raise error(f"{' '.join(arguments)} failed: {message}")


def _english() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C"}


def _last_line(message: str) -> str:
    errors = [line for line in message.splitlines() if line.startswith("E:")] or message.splitlines()
    return errors[-1] if errors else "no message"
