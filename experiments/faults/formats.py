"""The formats of files and of requests that come from others: one whole example of each, how it is damaged, and opened.

An example is a directory. `damage` changes it in place; `open` reads it with the command or the loader of ours.
"""

import io
import json
import pickle
import shutil
import socket
import sys
import threading
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium import spaces
from PIL import Image
from stable_baselines3 import PPO

from agents import ask, clone, record
from agents.ask_server import AskServer
from agents.bc_dataset import load_labelled_datasets
from agents.clone_config import CONFIGS
from agents.sb3_agent import OBSERVATIONS, read_policy
from agents.score_table import format_table
from common.command import run
from common.images import read_image
from common.results import RESULTS, read_result
from experiments import report
from experiments.faults.corruption import (
    FOREIGN,
    Damage,
    Rng,
    damage_bytes,
    damage_json,
    damage_pickle,
    damage_safetensors,
    damage_words,
    damage_zip,
    write_damaged,
)
from pretrain.referring import dataset_report
from pretrain.referring.refcoco import RefCocoDataset
from pretrain.referring.refer_files import IMAGES
from vlm import checkpoint
from vlm.presets import build
from vlm.segmentation.mask_head import MaskHead, MaskHeadConfig
from vlm.training.config import parse_config

TARGET = "target"  # the name of the damaged directory
SIDE = 24  # pixels of an example picture
TRAINED = {"games": ["MsPacman"], "arguments": {"grid": "8", "size": [32, 32]}, "point_grid": 4}
CONFIG_WORDS = ["--data", "a", "--out", "b", "--config", "policy", "--steps", "10", "--targets", "soft", "--trainer"]
CONFIG_WORDS += ["save_steps=2", "bf16=false", "--encoder-learning-rate", "0.001", "--game-weights", "Carnival=2"]


@dataclass(frozen=True)
class Format:
    """A format of files: `prepare` writes an example, `damage` changes it, `open` reads it and returns an exit code."""

    name: str
    count: int  # of mutations
    prepare: Callable[[Path], None]
    damage: Callable[[Path, Rng], str]
    open: Callable[[Path], int]


def any_file(damages: Mapping[str, Damage], place: Path, rng: Rng) -> str:
    """Damage one file of a directory, by what its name ends with; any other as bytes."""
    files = sorted(file for file in place.rglob("*") if file.is_file())
    file = files[int(rng.integers(len(files)))]
    if rng.random() < 0.03:
        file.unlink()
        return f"{file.name}: missing"
    if rng.random() < 0.03:
        other = files[int(rng.integers(len(files)))]
        shutil.copyfile(other, file) if other != file else file.write_bytes(b"")
        return f"{file.name}: content of {other.name}"
    return write_damaged(file, damages.get(file.suffix, damage_bytes), rng)


def loads(read: Callable[[Path], object]) -> Callable[[Path], int]:
    """Return what opens a directory by a loader, as a command would, and prints what it has read."""

    def main(place: Path) -> int:
        print(read(place))
        return 0

    return lambda place: run(partial(main, place))


def write_checkpoint(place: Path) -> None:
    """Write a tiny model that was trained on everything, with a mask head."""
    vlm = build("tiny", seed=1)
    checkpoint.save(vlm, place, TRAINED)
    MaskHead(MaskHeadConfig.of(vlm)).save(place)


def damage_checkpoint(place: Path, rng: Rng) -> str:
    """Damage a file of a checkpoint, or let its configuration ask for foreign code."""
    (place / "foreign.py").write_text(FOREIGN)
    if rng.random() < 0.08:
        name = str(rng.choice(["config.json", "tokenizer_config.json", "processor_config.json"]))
        classes = ["AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoTokenizer", "AutoProcessor"]
        values = json.loads((place / name).read_text()) if (place / name).exists() else {}
        values |= {"auto_map": {name: "foreign.Model" for name in classes}}
        if rng.random() < 0.5:
            values["model_type"] = "foreign"
        (place / name).write_text(json.dumps(values))
        return f"{name}: auto_map"
    return any_file({".json": damage_json, ".safetensors": damage_safetensors}, place, rng)


def open_checkpoint(place: Path) -> int:
    """Ask a checkpoint everything about a picture."""
    Image.new("RGB", (32, 32), (9, 99, 199)).save("picture.png")
    words = ["--checkpoint", str(place), "--image", "picture.png", "--html", "page.html", "--expression", "the ghost"]
    return run(lambda: ask.main(words))


def write_dataset(place: Path) -> None:
    """Record openings of a game."""
    record.record(record.Args(game="Freeway", out=place, agent="random", episodes=2, max_frames=40))


def read_dataset(place: Path) -> object:
    """Return what a dataset holds, and decode its frames."""
    (labelled,) = load_labelled_datasets([place], "actions", 1.0, 0.0)
    data = labelled.data
    shapes = {data.frames(row, 2).shape for row in range(len(data))}
    return data.info, shapes, data.scores


def write_refer(place: Path) -> None:
    """Write RefCOCO with one picture and an expression in each split."""
    (place / IMAGES).mkdir(parents=True)
    (place / "refcoco").mkdir()
    name = "COCO_train2014_000000000011.jpg"
    Image.new("RGB", (SIDE, SIDE), (200, 30, 30)).save(place / IMAGES / name)
    refs = []
    for number, split in enumerate(("train", "val", "testA", "testB")):
        sentence = {"sent_id": number, "raw": "thing", "sent": "thing", "tokens": ["thing"]}
        ref = {"ref_id": number, "ann_id": 5, "category_id": 1, "image_id": 11, "file_name": "x", "split": split}
        refs.append({**ref, "sent_ids": [number], "sentences": [sentence]})
    (place / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    outlines = [[2, 2, 20, 2, 20, 20, 2, 20]]
    found = {
        "images": [{"id": 11, "file_name": name, "height": SIDE, "width": SIDE}],
        "annotations": [{"id": 5, "image_id": 11, "category_id": 1, "segmentation": outlines}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (place / "refcoco" / "instances.json").write_text(json.dumps(found))


def open_refer(place: Path) -> int:
    """Report a folder of REFER; then read every item of a split."""
    run(lambda: dataset_report.main(["--data", str(place)]))  # which ends with 2 where a split is not usable

    def read_items(_: Path) -> object:
        data = RefCocoDataset(place, "refcoco", "val")
        return [
            (sample.expressions, sample.masks.sum(), data.note) for sample in map(data.__getitem__, range(len(data)))
        ]

    return loads(read_items)(place)


def write_pictures(place: Path) -> None:
    """Write a picture in each of several formats, with metadata."""
    place.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    picture, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "a description", 72.0
    for name, changed, options in (
        ("rgb.png", picture, {"exif": exif}), ("rgb.jpg", picture, {"exif": exif, "dpi": (72, 72)}),
        ("gray.png", picture.convert("L"), {}), ("palette.png", picture.convert("P"), {"transparency": 0}),
        ("alpha.png", picture.convert("RGBA"), {}), ("progressive.jpg", picture, {"progressive": True}),
        ("cmyk.jpg", picture.convert("CMYK"), {}), ("picture.gif", picture, {}),
        ("wide.png", picture.convert("I;16"), {}),
    ):  # fmt: skip
        changed.save(place / name, **options)


def read_pictures(place: Path) -> object:
    """Return the shape of a picture; the first damaged one ends the reading."""
    return [read_image(file).shape for file in sorted(place.iterdir()) if file.suffix != ".gif"]


def damage_picture(place: Path, rng: Rng) -> str:
    """Damage one picture; the others go, and a GIF takes the name of a PNG."""
    files = sorted(place.iterdir())
    chosen = files[int(rng.integers(len(files)))]
    for file in files:
        if file != chosen:
            file.unlink()
    done = write_damaged(chosen, damage_bytes, rng)
    if chosen.suffix == ".gif":
        chosen.rename(chosen.with_suffix(".png"))
    return done


class _Noise(gymnasium.Env):
    observation_space, action_space = OBSERVATIONS, spaces.Discrete(6)


def write_archive(place: Path) -> None:
    """Save an untrained SB3 learner with a small network."""
    place.mkdir()
    small = {"features_extractor_kwargs": {"features_dim": 16}}
    PPO("CnnPolicy", _Noise(), seed=1, device="cpu", n_steps=4, policy_kwargs=small).save(place / "expert.zip")


def damage_torch_file(content: bytes, rng: Rng) -> tuple[str, bytes]:
    """Damage a file of `torch.save`: an archive whose pickle names its tensors."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".pkl"))
    return damage_zip(content, rng, {name: damage_torch_pickle})


def damage_torch_pickle(content: bytes, rng: Rng) -> tuple[str, bytes]:
    """Damage the pickle of a file of `torch.save`, which plain pickle cannot read."""
    return damage_pickle(pickle.dumps([[1, 2], {"a": (3,)}]), rng) if rng.random() < 0.3 else damage_bytes(content, rng)


def damage_archive(place: Path, rng: Rng) -> str:
    """Damage an archive."""
    members = {"data": damage_json, "policy.pth": damage_torch_file}
    return write_damaged(place / "expert.zip", lambda content, rng: damage_zip(content, rng, members), rng)


def read_expert(place: Path) -> object:
    """Return the action of an expert for a black picture."""
    return read_policy(place / "expert.zip", 6).predict(np.zeros((1, 4, 84, 84), np.uint8), deterministic=True)[0]


def write_results(place: Path) -> None:
    """Copy small results of every kind."""
    place.mkdir()
    for name in ("eight", "optimizers", "reader", "shipped", "pvp_speed", "experts"):
        shutil.copy(RESULTS / f"{name}.json", place)


def open_results(place: Path) -> int:
    """Print the tables of a folder of results, and the scores of one of them."""
    code = run(lambda: report.main(["--results", str(place), "--markdown"]))
    other = loads(lambda place: format_table(read_result(place / "eight.json")))(place)
    return max(code, other, key=lambda one: (one not in (0, 2), one))


def write_words(place: Path) -> None:
    """Write the words of a command line, as JSON."""
    place.mkdir()
    (place / "words.json").write_text(json.dumps(CONFIG_WORDS))


def damage_config(place: Path, rng: Rng) -> str:
    """Damage the words of a command line."""
    name, words = damage_words(json.loads((place / "words.json").read_text()), rng)
    (place / "words.json").write_text(json.dumps(words))
    return name


def open_config(place: Path) -> int:
    """Parse a training's command line over a named config."""
    words = json.loads((place / "words.json").read_text())
    return loads(lambda _: parse_config(CONFIGS, words, clone.__doc__))(place)


REQUESTS = (
    "GET /api/info", "GET /api/state", "GET /api/grid", "GET /api/pixel?row=3&column=7",
    "GET /api/mask?expression=the+red+ghost", "POST /api/picture", "GET /", "POST /api/step", "POST /api/restart",
)  # fmt: skip


def write_requests(place: Path) -> None:
    """Write a checkpoint to ask, and requests in the form of HTTP."""
    write_checkpoint(place / "checkpoint")
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (9, 99, 199)).save(buffer, format="PNG")
    for number, line in enumerate(REQUESTS):
        body = buffer.getvalue() if "picture" in line else b""
        head = f"{line} HTTP/1.1\r\nHost: localhost:PORT\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        (place / f"request-{number}").write_bytes(head.encode() + body)


def damage_request(place: Path, rng: Rng) -> str:
    """Damage some of the requests."""
    damages = []
    for file in sorted(place.glob("request-*")):
        if rng.random() < 0.3:
            damages.append(write_damaged(file, damage_head if rng.random() < 0.6 else damage_bytes, rng))
    return ", ".join(damages) or "none"


def damage_head(content: bytes, rng: Rng) -> tuple[str, bytes]:
    """Damage the words of a request's head."""
    head, _, body = content.partition(b"\r\n\r\n")
    name, words = damage_words(head.decode().split(" "), rng)
    return name, " ".join(words).encode(errors="replace") + b"\r\n\r\n" + body


def open_requests(place: Path) -> int:
    """Send the requests to a server; 1 if one is answered by no status of ours, or the server is dead afterwards."""

    def main() -> int:
        with ask.open_session(ask.Args(place / "checkpoint", "Freeway")) as session, AskServer(session, 0) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            answers = [send(server.server_port, file.read_bytes()) for file in sorted(place.glob("request-*"))]
            answers.append(send(server.server_port, b"GET /api/info HTTP/1.1\r\nHost: localhost:PORT\r\n\r\n"))
            server.shutdown()
        wrong = [answer for answer in answers if answer[:1] == b"5" and answer != b"505" and answer != b"501"]
        print(answers)
        if any(answer not in (b"200",) for answer in answers[:-1]):
            print("error: a request was refused", file=sys.stderr)
        return 1 if wrong or answers[-1] != b"200" else 2 if any(answer != b"200" for answer in answers) else 0

    return run(main)


def send(port: int, request: bytes) -> bytes:
    """Return the status that a server answers a request with; empty if it hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        try:
            connection.sendall(request.replace(b"PORT", str(port).encode()))
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(2**16)
        except OSError:
            return b""
    found = answer.split(b" ")
    return found[1][:3] if len(found) > 1 else b""


FORMATS: dict[str, Format] = {
    one.name: one
    for one in (
        Format("checkpoint", 220, write_checkpoint, damage_checkpoint, open_checkpoint),
        Format("dataset", 150, write_dataset, partial(any_file, {".json": damage_json}), loads(read_dataset)),
        Format("refer", 170, write_refer, partial(any_file, {".json": damage_json, ".p": damage_pickle}), open_refer),
        Format("image", 320, write_pictures, damage_picture, loads(read_pictures)),
        Format("sb3", 120, write_archive, damage_archive, loads(read_expert)),
        Format("result", 60, write_results, partial(any_file, {".json": damage_json}), open_results),
        Format("config", 80, write_words, damage_config, open_config),
        Format("request", 40, write_requests, damage_request, open_requests),
    )
}
