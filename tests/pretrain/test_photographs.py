"""Photographs of packages are filtered, reduced and split for good; what is missing or damaged is said or skipped."""

import json
import struct
import subprocess
import zlib

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from pretrain.data import debian_packages, package_pictures
from pretrain.data.debian_packages import PackageNotFoundError, download_package, licenses
from pretrain.data.images import open_image_source
from pretrain.data.package_pictures import is_held_out
from pretrain.data.photographs import Args, Thumbnails, fetch, main, to_photograph
from pretrain.data.qt_resources import read_resources
from pretrain.data.scikit_image_photographs import EVALUATION_PHOTOGRAPHS, TRAINING_PHOTOGRAPHS

DEB = "fake-wallpapers"


def photo(seed, height=300, width=400):
    """Return a picture of many colors that is unlike those of other seeds."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    noise = rng.integers(-20, 21, (height, width, 3))
    return Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8))


def rcc(files):
    """Return a version 3 resource file of Qt that holds a folder `images` with the files, the last one compressed."""
    names, contents, offsets = b"", b"", []
    for name in ("images", *files):
        offsets.append(len(names))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    nodes = struct.pack(">IHIIQ", 0, 2, 1, 1, 0) + struct.pack(">IHIIQ", offsets[0], 2, len(files), 2, 0)
    for number, (content, offset) in enumerate(zip(files.values(), offsets[1:], strict=True)):
        compressed = number == len(files) - 1
        stored = struct.pack(">I", len(content)) + zlib.compress(content) if compressed else content
        nodes += struct.pack(">IHHHIQ", offset, int(compressed), 0, 1, len(contents), 0)
        contents += struct.pack(">I", len(stored)) + stored
    start = 24
    places = start, start + len(nodes), start + len(nodes) + len(contents)
    return b"qres" + struct.pack(">IIIII", 3, *places, 0) + nodes + contents + names


def encoded(picture, folder, suffix):
    picture.save(folder / f"x.{suffix}", **({"quality": 90} if suffix != "png" else {}))
    return (folder / f"x.{suffix}").read_bytes()


@pytest.fixture
def unpacked(tmp_path):
    """The content of a package: pictures of every kind, a copyright file, and a resource file with two pictures."""
    folder, scratch = tmp_path / "package", tmp_path / "scratch"
    pictures, documents = folder / "usr/share/pictures", folder / "usr/share/doc" / DEB
    for path in (pictures / "cartoon", documents, scratch):
        path.mkdir(parents=True)
    photo(0).save(pictures / "wide.jpg", quality=95)
    photo(0, 600, 800).save(pictures / "wide-again.png")
    photo(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(pictures / "wide-mirrored.png")
    photo(1).save(pictures / "cartoon" / "friendly.png")
    photo(2, 150, 400).save(pictures / "low.png")
    Image.new("RGB", (400, 400), (0, 90, 0)).save(pictures / "plain.png")
    stamp = photo(3).convert("RGBA")
    alpha = Image.new("L", stamp.size, 0)
    alpha.paste(255, (50, 20, 300, 250))
    alpha.paste(0, (50, 20, 150, 120))
    stamp.putalpha(alpha)
    stamp.save(pictures / "stamp.png")
    (pictures / "broken.png").write_bytes((pictures / "wide.jpg").read_bytes()[:500])
    (pictures / "link.png").symlink_to(scratch / "x.png")
    files = {"a.webp": encoded(photo(4), scratch, "webp"), "b.png": encoded(photo(5), scratch, "png"), "c.txt": b"no"}
    (pictures / "more.rcc").write_bytes(rcc({"c.txt": b"no", "../a.webp": files["a.webp"], "b.png": files["b.png"]}))
    (pictures / "damaged.rcc").write_bytes(rcc(files)[:60])
    (documents / "copyright").write_text("Files: *\nLicense: CC0-1.0\n\nFiles: x\nLicense: GPL-2\nLicense: CC0-1.0\n")
    return folder


@pytest.fixture
def packages(monkeypatch, unpacked):
    """Stands in for apt-get and dpkg: one package exists. Returns the list of the downloaded names."""
    downloaded = []

    def download(name, folder):
        downloaded.append(name)
        if name != DEB:
            raise PackageNotFoundError(f"E: Unable to locate package {name}")
        return folder / f"{name}_1.0_all.deb"

    monkeypatch.setattr(package_pictures, "require_debian_tools", lambda: None)
    monkeypatch.setattr(package_pictures, "download_package", download)
    monkeypatch.setattr(package_pictures, "unpack_package", lambda file, folder: unpacked.rename(folder))
    monkeypatch.setattr(package_pictures, "package_version", lambda file: "1.0")
    return downloaded


def written(out):
    return {file.stem: file for file in sorted(out.glob(f"*/{DEB}/*.jpg"))}


def test_a_package_becomes_small_pictures_without_drawings_duplicates_and_broken_files(tmp_path, packages, capsys):
    out = fetch(Args(tmp_path / "photos", (DEB,)))
    (source,) = json.loads((out / "sources.json").read_text())
    assert (source["version"], source["licenses"]) == ("1.0", ["CC0-1.0", "GPL-2"])
    assert "License: GPL-2" in (out / "copyright" / f"{DEB}.txt").read_text()
    dropped = {"duplicate": 2, "drawing": 1, "small": 1, "few colors": 1, "unreadable": 1}
    assert source["dropped"] == dropped
    names = {name.rsplit("-pictures-", 1)[1] for name in written(out)}
    assert names == {"stamp", "wide-again", "more-images-a", "more-images-b"}
    assert sum(source["images"].values()) == 4
    assert "damaged.rcc is a damaged resource file" in capsys.readouterr().out
    assert len(open_image_source(str(out))) == 4
    assert not list(out.rglob(".*"))


def test_pictures_are_cut_to_their_opaque_part_laid_on_grey_and_reduced(tmp_path, packages):
    out = fetch(Args(tmp_path / "photos", (DEB,)))
    found = {name.rsplit("-pictures-", 1)[1]: np.asarray(Image.open(file)) for name, file in written(out).items()}
    assert found["wide-again"].shape == (256, 341, 3)
    stamp = found["stamp"]
    assert stamp.shape == (230, 250, 3)
    assert np.abs(stamp[:90, :90].astype(int) - 128).max() < 12
    assert stamp[110:].std() > 20


def test_mostly_transparent_pictures_are_left_out():
    picture = photo(0).convert("RGBA")
    alpha = Image.new("L", picture.size, 0)
    alpha.paste(255, (0, 0, 400, 20))
    alpha.paste(255, (0, 0, 20, 300))
    picture.putalpha(alpha)
    with pytest.raises(UserError, match="transparent"):
        to_photograph(picture)


def test_a_finished_package_is_not_fetched_again_and_an_interrupted_one_is_made_anew(tmp_path, packages, unpacked):
    out = tmp_path / "photos"
    (out / "train" / DEB).mkdir(parents=True)
    photo(9).save(out / "train" / DEB / "left-over.jpg")
    fetch(Args(out, (DEB,)))
    assert "left-over" not in written(out)
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    assert main(["--out", str(out), "--packages", DEB]) == 0
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before
    assert packages == [DEB]


def test_a_package_that_apt_does_not_know_is_skipped_with_one_line(tmp_path, packages, capsys):
    out = fetch(Args(tmp_path / "photos", ("no-such-package", DEB)))
    assert "skipped no-such-package: E: Unable to locate package" in capsys.readouterr().out
    assert [source["package"] for source in json.loads((out / "sources.json").read_text())] == [DEB]
    with pytest.raises(UserError, match="at least one package that apt knows, got no-such-package"):
        fetch(Args(tmp_path / "nothing", ("no-such-package",)))


def test_the_held_out_part_is_a_tenth_and_does_not_change():
    names = [f"pictures/{number}" for number in range(1000)]
    held_out = [name for name in names if is_held_out(DEB, name)]
    assert 70 < len(held_out) < 130
    assert held_out[:5] == ["pictures/39", "pictures/44", "pictures/45", "pictures/48", "pictures/58"]
    assert held_out != [name for name in names if is_held_out("another-package", name)]


def test_photographs_that_experiments_evaluate_on_are_held_out_and_need_no_apt(tmp_path, monkeypatch):
    monkeypatch.setattr(debian_packages.shutil, "which", lambda tool: None)
    out = tmp_path / "photos"
    with pytest.raises(UserError, match=r"expected apt-get and dpkg and dpkg-deb, .* they are not here"):
        fetch(Args(out, (DEB, "scikit-image")))
    train = {file.stem for file in (out / "train" / "scikit-image").iterdir()}
    test = {file.stem for file in (out / "test" / "scikit-image").iterdir()}
    assert {name.split(".")[0] for name in EVALUATION_PHOTOGRAPHS} <= test
    assert len(train | test) == len(EVALUATION_PHOTOGRAPHS) + len(TRAINING_PHOTOGRAPHS)
    assert not train & test
    assert [source["package"] for source in json.loads((out / "sources.json").read_text())] == ["scikit-image"]


@pytest.mark.parametrize("name", ["--help", "-o", "a;b", "../x", "A", "a b", ""])
def test_what_is_no_package_name_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="expected the name of a Debian package"):
        Args(tmp_path, (name,))
    with pytest.raises(UserError, match="expected the name of a Debian package"):
        download_package(name, tmp_path)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("W: x\nE: Unable to locate package fake-wallpapers", PackageNotFoundError),
        ("E: Could not open lock file", UserError),
    ],
)
def test_what_apt_says_becomes_one_line(tmp_path, monkeypatch, message, error):
    failed = subprocess.CompletedProcess([], 100, "", message)
    monkeypatch.setattr(debian_packages.subprocess, "run", lambda arguments, **options: failed)
    with pytest.raises(UserError, match="failed: E: ") as raised:
        download_package(DEB, tmp_path)
    assert type(raised.value) is error
    assert "\n" not in str(raised.value)


def test_another_folder_is_not_written_to(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"a new folder or one with sources.json, got .* which holds thesis.tex"):
        fetch(Args(tmp_path))


def test_resource_files_are_read_in_both_forms_and_damage_is_refused(tmp_path):
    file = tmp_path / "x.rcc"
    content = rcc({"a.png": b"stored", "b.png": b"compressed" * 9})
    file.write_bytes(content)
    assert dict(read_resources(file)) == {"/images/a.png": b"stored", "/images/b.png": b"compressed" * 9}
    cycle = bytearray(content)
    struct.pack_into(">I", cycle, 24 + 22 + 10, 0)  # the folder `images` holds the root
    for damaged in (b"", b"PNG" + content[3:], content[:80], bytes(cycle)):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="resource file of Qt"):
            list(read_resources(file))


def test_thumbnails_tell_the_same_picture_from_another():
    thumbnails = Thumbnails()
    assert thumbnails.add(np.asarray(photo(0)))
    assert thumbnails.add(np.asarray(photo(1)))
    assert not thumbnails.add(np.asarray(photo(0, 290, 380)))
    assert not thumbnails.add(np.asarray(photo(1))[:, ::-1])


def test_licences_of_a_copyright_file_are_listed_once():
    assert licenses("License: MIT\n text\nFiles: a\nLicense: CC-BY-4.0\nLicense: MIT\n") == ["CC-BY-4.0", "MIT"]
