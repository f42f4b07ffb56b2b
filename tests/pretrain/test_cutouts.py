"""Cut-outs of packages get the nouns of their captions and folders, and are split for good; others are left out."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from common.errors import UserError
from pretrain.data import cutouts, package_pictures, photographs
from pretrain.data.cutouts import Args, fetch, main, name_of_caption, nouns_of, resize_cutout, to_cutout
from pretrain.data.package_pictures import DroppedError, Picture

DEB = "fake-stamps"


def stamp(color=(200, 40, 40), size=(60, 40), border=8):
    """Return an ellipse of one color in a transparent border, or a rectangle without one."""
    picture = Image.new("RGBA", size, (0, 255, 0, 0))
    box = (border, border, size[0] - border - 1, size[1] - border - 1)
    draw = ImageDraw.Draw(picture)
    (draw.ellipse if border else draw.rectangle)(box, fill=(*color, 255))
    return picture


@pytest.fixture
def stamps(tmp_path, monkeypatch):
    """Stands in for a package of stamps, and for photographs, of which two are written."""
    folder = tmp_path / "package"
    files = {
        "stamps/animals/birds/owl": (stamp(), "A snowy owl, at night."),
        "stamps/animals/birds/crow": (stamp((20, 20, 20)), "A crow."),
        "stamps/animals/cow": (stamp((240, 240, 240)), "Eat your greens!"),
        "stamps/symbols/x": (stamp(), "A letter."),
        "stamps/food/full": (stamp(border=0), "A pie."),
        "stamps/food/tiny": (stamp(size=(30, 30), border=10), "A pea."),
        "stamps/food/unnamed": (stamp(), None),
        "stamps/food/long": (stamp(), "Eat as many of these delicious things as you can carry"),
        "words_sample/fire_truck": (stamp((250, 0, 0)), None),
    }
    for name, (picture, caption) in files.items():
        file = folder / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)
        if caption:
            file.with_suffix(".txt").write_text(f"{caption}\nxx.utf8=no\n")
    (folder / "stamps/broken.png").write_bytes(b"no")
    (folder / "stamps/broken.txt").write_text("A thing.")
    monkeypatch.setattr(package_pictures, "require_debian_tools", lambda: None)
    monkeypatch.setattr(package_pictures, "download_package", lambda name, place: place / f"{name}.deb")
    monkeypatch.setattr(package_pictures, "unpack_package", lambda file, place: folder.rename(place))
    monkeypatch.setattr(package_pictures, "package_version", lambda file: "2.0")
    monkeypatch.setattr(photographs, "fetch", lambda args: args.out.mkdir())


@pytest.mark.parametrize(
    ("caption", "name"),
    [
        ("A frog.", "frog"),
        ("An albino peahen (a female peafowl, or peacock).", "albino peahen"),
        ("A bunch of grapes.", "grapes"),
        ("A tower with a red flag.", "tower"),
        ("The caboose—a carriage for the guard.", "caboose"),
        ("A folded shirt!", "folded shirt"),
        ("Black.", None),
        ("“Hospital”.", None),
        ("50 Japanese yen.", None),
        ("Those are very many words together.", None),
        ("A very large old wooden cart.", None),
        ("", None),
    ],
)
def test_a_name_is_what_a_caption_begins_with(caption, name):
    assert name_of_caption(caption) == name


def test_named_cutouts_are_written_with_their_nouns_and_others_left_out(tmp_path, stamps, capsys):
    out = fetch(Args(tmp_path / "set", (DEB,)))
    (source,) = json.loads((out / "sources.json").read_text())
    assert source["dropped"] == {"unnamed": 3, "symbol": 1, "opaque": 1, "small": 1, "unreadable": 1}
    nouns = {file.rsplit("-", 1)[1]: found for file, found in source["nouns"].items()}
    assert nouns == {
        "owl.png": ["snowy owl", "owl", "bird", "animal"],
        "crow.png": ["crow", "bird", "animal"],
        "fire_truck.png": ["fire truck", "truck"],
    }
    for file in source["nouns"]:
        with Image.open(out / file) as picture:
            assert (picture.mode, picture.size) == ("RGBA", (44, 24))
    assert sum(source["images"].values()) == len(list(out.glob("t*/**/*.png"))) == 3
    assert (out / "backgrounds").is_dir()
    assert "all" in capsys.readouterr().out


def test_a_finished_set_is_not_fetched_again_and_another_folder_is_not_written_to(tmp_path, stamps, monkeypatch):
    out = fetch(Args(tmp_path / "set", (DEB,)))
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.png")}
    monkeypatch.setattr(photographs, "fetch", lambda args: None)
    assert main(["--out", str(out), "--packages", DEB]) == 0
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.png")} == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(UserError, match="expected a new folder"):
        fetch(Args(tmp_path / "other", (DEB,)))


def test_the_split_of_a_cutout_never_changes():
    held_out = [n for n in range(1000) if package_pictures.is_held_out(DEB, f"stamps/{n}", cutouts.TEST_EVERY)]
    assert 160 < len(held_out) < 240
    assert held_out[:4] == [n for n in range(1000) if package_pictures.is_held_out(DEB, f"stamps/{n}", 5)][:4]


def test_what_is_no_cutout_is_left_out():
    for picture in (Image.new("RGB", (50, 50)), stamp(border=0), stamp(size=(20, 20))):
        with pytest.raises(DroppedError):
            to_cutout(picture)
    assert max(to_cutout(stamp(size=(900, 400))).size) == cutouts.MAX_SIDE
    with pytest.raises(DroppedError, match="unnamed"):
        nouns_of(Picture(Path("missing/gnu.png"), "animals/gnu"))


def test_the_colors_of_transparent_pixels_do_not_bleed():
    for scale in (0.4, 2.3):
        small = np.asarray(resize_cutout(stamp(), scale)).astype(int)
        inside = small[small[..., 3] >= cutouts.OPAQUE]
        assert np.abs(inside[:, :3] - (200, 40, 40)).max() <= 30  # a green edge is 215 off
