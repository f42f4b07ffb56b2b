"""Datasets of the hub, and local clones, are read row by row as recorded games, or refused in one line."""

import fnmatch
import json
import shutil
import uuid
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard

from common.command import run
from common.errors import UserError
from common.images import decode_rgb
from envs import hub_sets, hub_source
from envs.column_map import HubOptions
from envs.episodes import INFO, DatasetError, DatasetInfo, Episode, EpisodeDataset, EpisodeWriter, encode_png
from envs.hub_sets import is_dataset, local_dataset, local_datasets, open_dataset
from envs.protocol import MACHADO2018
from tests.hub_data import LENGTHS, as_images, encode, make_frames, write_atari_parquet, write_lerobot, write_parquet

PONG = ("noop", "fire", "right", "left", "right fire", "left fire")


def command(*arguments):
    return run(lambda: hub_sets.main([str(argument) for argument in arguments]))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A function that puts a folder on a hub, and returns its name there and which files of it were downloaded."""

    def publish(folder):
        name, asked = f"owner/{uuid.uuid4().hex}", []  # a process asks once for a name

        def download(repo_id, repo_type, revision, allow_patterns):
            assert (repo_id, repo_type) == (name, "dataset")
            place = tmp_path / "snapshots" / ("ab" * 20)
            for file in filter(Path.is_file, folder.rglob("*")):
                path = str(file.relative_to(folder))
                if any(fnmatch.fnmatch(path, pattern) for pattern in allow_patterns):
                    (place / path).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, place / path)
                    asked.append((revision, path))
            return str(place)

        monkeypatch.setattr(hub_source, "snapshot_download", download)
        return name, asked

    return publish


def test_the_layout_of_atari_parquet_is_read_row_by_row(tmp_path):
    folder = write_atari_parquet(tmp_path / "clone", ("alien", "pong"))
    data = open_dataset(f"{folder}:pong")
    assert (data.info.game, data.info.action_names, data.info.protocol) == ("Pong", PONG, MACHADO2018)
    assert data.actions.tolist() == [(3 * row) % 6 for row in range(8)]
    assert data.seeds == [0, 1]
    assert data.starts.tolist() == [0] * 5 + [5] * 3
    assert data.truncated.tolist() == [row in (4, 7) for row in range(8)]  # its end is not known
    assert data.info.versions["frames"] == "not exact (JPEG)"
    assert not data.info.is_scored
    for row, frame in enumerate(make_frames(8, seed=1)):  # the second split's
        assert np.array_equal(data.frame(row), decode_rgb(encode(frame), "jpeg"))  # stored without further loss
        assert np.abs(data.frame(row).astype(int) - frame).mean() < 8


def test_a_remote_dataset_downloads_its_metadata_then_the_files_of_the_split_alone(tmp_path, hub):
    name, asked = hub(write_atari_parquet(tmp_path / "there", ("alien", "pong")))
    data = open_dataset(Path(f"hf://{name}@v1:pong"))
    assert {path for _, path in asked} == {"README.md", "data/pong-00000-of-00001.parquet"}
    assert asked[0] == ("v1", "README.md")
    assert asked[-1][0] == "ab" * 20  # the same commit, whatever v1 is by then
    assert data.info.versions["source"] == f"hf://{name}@{'ab' * 20}:default/pong"
    assert data.info.commit == "ab" * 20
    again = len(asked)
    assert open_dataset(f"hf://datasets/{name}@v1:pong").actions.tolist() == data.actions.tolist()
    assert len(asked) == again


def test_files_of_a_split_are_found_without_a_card(tmp_path, hub):
    name, asked = hub(write_atari_parquet(tmp_path / "there", ("alien", "pong"), card=False))
    assert len(open_dataset(f"hf://{name}:pong")) == sum(LENGTHS)
    assert {path for _, path in asked} == {"data/pong-00000-of-00001.parquet"}


def test_what_is_in_the_hubs_cache_is_read_without_a_network(tmp_path, monkeypatch):
    """By the hub's own client, whose cache holds links to files named by their hash."""
    there, cache = write_atari_parquet(tmp_path / "there", ("alien", "pong")), tmp_path / "cache"
    place = cache / "datasets--owner--cached"
    for number, file in enumerate(sorted(filter(Path.is_file, there.rglob("*")))):
        blob, link = place / "blobs" / f"{number:040x}", place / "snapshots" / ("cd" * 20) / file.relative_to(there)
        blob.parent.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, blob)
        link.symlink_to(blob)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("cd" * 20)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    data = open_dataset(Path("hf://owner/cached:pong"))
    assert data.actions.tolist() == [(3 * row) % 6 for row in range(8)]
    assert data.info.commit == "cd" * 20
    with pytest.raises(DatasetError, match=r"hf://owner/absent is neither here .* traffic has been disabled"):
        open_dataset("hf://owner/absent")


def test_an_exported_dataset_on_the_hub_is_used_as_it_is(tmp_path, hub):
    record(tmp_path / "recorded")
    assert command("--export-from", tmp_path / "recorded", "--out", tmp_path / "export") == 0
    name, asked = hub(tmp_path / "export")
    assert_same_rows(open_dataset(f"hf://{name}"), EpisodeDataset(tmp_path / "recorded"))
    assert {path for _, path in asked} >= {"README.md", "info.json", "data/episode-00000007.parquet"}


def test_frames_that_are_exact_stay_the_same_bytes(tmp_path):
    folder = write_atari_parquet(tmp_path / "clone", kind="PNG")
    data = open_dataset(folder)  # one split needs no name
    assert data.info.versions["frames"] == "exact"
    (first, *_) = make_frames(8)
    assert data._pngs[0].as_py() == encode(first, "PNG")


@pytest.mark.parametrize("dtype", ["image", "video"])
def test_lerobot_datasets_are_read_from_images_and_from_videos(tmp_path, dtype):
    data = open_dataset(write_lerobot(tmp_path / "robot", dtype=dtype))
    assert data.info.game == "Pong"  # the only task's name
    assert data.actions.tolist() == [0, 1, 2, 3, 4, 1, 2, 3]
    assert data.rewards.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert data.scores == [10, 3]
    assert data.terminated.tolist() == [row in (4, 7) for row in range(8)]
    frames = np.concatenate([make_frames(length, seed=episode) for episode, length in enumerate(LENGTHS)])
    error = max(np.abs(data.frame(row).astype(int) - frame).mean() for row, frame in enumerate(frames))
    assert error == 0 if dtype == "image" else error < 12


def test_one_of_several_cameras_is_chosen(tmp_path):
    folder = write_lerobot(tmp_path / "robot", frame="observation.images.a", cameras=("observation.images.b",))
    with pytest.raises(DatasetError, match=r"several images, .*: choose one, --columns frame=observation"):
        open_dataset(folder)
    columns = HubOptions(columns=("frame=observation.images.b",))
    assert len(open_dataset(folder, columns)) == sum(LENGTHS)
    with pytest.raises(DatasetError, match=r"nearest: observation.images.b|frame=observation.images.b"):
        open_dataset(folder, HubOptions(columns=("frame=observation.images.bb",)))


def test_columns_of_ones_own_are_mapped_and_rows_of_one_game_taken(tmp_path):
    """As in https://huggingface.co/datasets/TESS-Computer/atari-vla-stage1-5hz, whose pictures are plain bytes."""
    columns = {
        "game": ["pong", "alien", "pong"],
        "trial_id": [4, 4, 5],
        "action_int": [12, 17, 3],
        "score": [1.0, 2.0, 3.0],
        "image_bytes": [encode(frame, "PNG") for frame in make_frames(3)],
    }
    write_parquet(tmp_path / "own" / "train.parquet", columns)
    names = ("frame=image_bytes", "action=action_int", "reward=score", "episode=trial_id")
    with pytest.raises(DatasetError, match="--data-game, one of the games of its column game: Alien, Pong"):
        open_dataset(tmp_path / "own", HubOptions(names))
    data = open_dataset(tmp_path / "own", HubOptions(names, "Pong", "full"))
    assert data.actions.tolist() == [12, 3]
    assert data.info.action_names[12] == "left fire"
    assert data.info.protocol.full_action_space
    assert (data.scores, data.seeds, data.info.is_scored) == ([1.0, 3.0], [4, 5], True)


def test_actions_may_be_words_and_episodes_end_where_a_column_says(tmp_path):
    columns = {
        "image": as_images(make_frames(4), "PNG"),
        "action": ["NOOP", "RIGHTFIRE", "left fire", "Fire"],
        "done": [False, True, False, False],
    }
    write_parquet(tmp_path / "own" / "train.parquet", columns, ("image",))
    data = open_dataset(tmp_path / "own", HubOptions(("terminated=done",), "Pong"))
    assert data.actions.tolist() == [0, 4, 5, 1]
    assert data.terminated.tolist() == [False, True, False, False]
    assert data.truncated.tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"action": [0, 1, 2, 9, 4, 5, 0, 1]}, r"row 3: expected an action of Pong, 0 to 5 \(noop, .*got 9; .*full"),
        ({"action": [0, 1, 2, -1, 4, 5, 0, 1]}, r"pong-00000-of-00001.parquet, row 3: .* got -1$"),
        ({"action": [0.5] * 8}, r"row 0: expected one action, a number from 0 to 5 or a name, got 0.5"),
        ({"action": ["left", "up"] * 4}, r"row 1: expected an action of Pong, got 'up'; nearest: noop"),
        ({"size": (200, 160)}, r"row 0: expected frames of 210 x 160 in RGB, got 200 x 160 in RGB"),
        ({"mode": "L"}, r"row 0: expected frames of 210 x 160 in RGB, got 210 x 160 in L"),
        ({"image": [{"bytes": b"\xff\xd8 no", "path": None}] * 8}, "row 0: the frame is not a PNG or JPEG picture"),
        (
            {"episode": [0, 0, 0, 0, 0, 1, 1, 0]},
            "row 7: expected the rows of an episode together, got more of 0",
        ),
        ({"frame_index": [0, 1, 2, 2, 3, 0, 1, 2]}, r"row 3: expected an episode's steps in order, got 2 after 2"),
    ],
)
def test_wrong_rows_are_refused_by_file_and_row(tmp_path, made, message):
    folder = write_atari_parquet(tmp_path / "clone", **made)
    with pytest.raises(DatasetError, match=message):
        open_dataset(folder)
    kept = Path(hub_sets.config.HF_DATASETS_CACHE) / "pvplay"
    assert not [place for place in kept.glob("hub-*") if place.is_dir() and not (place / INFO).is_file()]


def test_a_picture_that_is_only_named_is_refused(tmp_path):
    folder = write_atari_parquet(tmp_path / "clone", image=[{"bytes": None, "path": "/etc/hostname"}] * 8)
    with pytest.raises(DatasetError, match=r"row 0: expected frames of .* got a path"):
        open_dataset(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"columns": ("frame=imag",)},
            "frame=imag: there is no such column; nearest: image; it has image, epi",
        ),
        ({"columns": ("fram=image",)}, "--columns: expected one of frame, action, .*, got 'fram'; nearest: frame"),
        ({"columns": ("image",)}, "--columns: expected ROLE=COLUMN, as in frame=image, got 'image'"),
        ({"data_game": "Pongg"}, "expected a game .* got 'Pongg'; nearest: Pong"),
    ],
)
def test_wrong_options_are_refused_in_one_line(tmp_path, options, message):
    folder = write_atari_parquet(tmp_path / "clone")
    with pytest.raises(UserError, match=message):
        open_dataset(folder, HubOptions(**options))


def test_unknown_columns_are_refused_with_those_there_are(tmp_path):
    write_parquet(tmp_path / "own" / "train.parquet", {"picture": [b"x"], "key": [1]})
    with pytest.raises(DatasetError, match=r"a column of the frames .* frame=\w+; its columns are picture, key"):
        open_dataset(tmp_path / "own", HubOptions(data_game="Pong"))
    with pytest.raises(DatasetError, match=r"tells episodes apart, as in --columns episode=COLUMN"):
        open_dataset(tmp_path / "own", HubOptions(("frame=picture", "action=key"), "Pong"))


def test_a_game_must_be_known(tmp_path):
    folder = write_atari_parquet(tmp_path / "clone", ("train",))
    with pytest.raises(DatasetError, match="does not name its game; expected --data-game, as in --data-game Pong"):
        open_dataset(folder)
    assert open_dataset(folder, HubOptions(data_game="ms. pac-man")).info.game == "MsPacman"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (":ponk", "expected a split, got ponk; nearest: pong; it has alien, pong"),
        ("", "expected a split, as in .*:alien; it has alien, pong"),
        (":other/pong", "expected a configuration, got other; nearest: default"),
    ],
)
def test_a_split_must_be_there(tmp_path, name, message):
    folder = write_atari_parquet(tmp_path / "clone", ("alien", "pong"))
    with pytest.raises(DatasetError, match=message):
        open_dataset(f"{folder}{name}")


@pytest.mark.parametrize("name", ["hf://owner", "hf://a/b/c", "hf://own er/set"])
def test_names_that_the_hub_cannot_have_are_refused(name):
    with pytest.raises(DatasetError, match=f"expected hf://owner/set, with .*got {name}"):
        open_dataset(Path(name))


def test_without_a_network_one_line_says_so(capsys, monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise ConnectionError("the hub cannot be reached\nat all")

    monkeypatch.setattr(hub_source, "snapshot_download", refuse)
    assert command("--import-from", "hf://owner/unreachable@v2:pong", "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error == (
        "error: hf://owner/unreachable@v2 is neither here nor to be had: the hub cannot be reached at all\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", ["../secret/*.parquet", "/etc/*.parquet", "https://example.com/a.parquet", "~/a"])
def test_a_card_names_no_files_but_the_datasets_own(tmp_path, path):
    folder = write_atari_parquet(tmp_path / "clone")
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {path}\n---\n")
    with pytest.raises(DatasetError, match="is damaged: expected files of the dataset, got"):
        open_dataset(folder, HubOptions(data_game="Pong"))


@pytest.mark.parametrize(
    "head", ["a: &x [1]\nconfigs: *x", "configs: [1, 2", "configs: 3", "- 1", "configs: [{data_files: 3}]"]
)
def test_a_damaged_card_is_refused_by_name(tmp_path, head):
    folder = write_atari_parquet(tmp_path / "clone")
    (folder / "README.md").write_text(f"---\n{head}\n---\n")
    with pytest.raises(DatasetError, match=r"README.md is damaged"):
        open_dataset(folder, HubOptions(data_game="Pong"))


def test_a_video_without_a_decoder_or_of_another_version_is_refused(tmp_path):
    folder = write_lerobot(tmp_path / "robot", dtype="video")
    for video in folder.rglob("*.mp4"):
        video.write_bytes(b"#EXTM3U\n/etc/hostname\n")  # a playlist
    with pytest.raises(DatasetError, match=r"episode_000000.mp4 cannot be decoded by imageio's ffmpeg"):
        open_dataset(folder)
    with pytest.raises(DatasetError, match=r"expected a video per episode \(LeRobot v2\), got v3.0"):
        open_dataset(write_lerobot(tmp_path / "new", dtype="video", version="v3.0"))


@pytest.mark.parametrize("rows", [2, 4])
def test_a_video_of_another_length_than_its_rows_is_refused(tmp_path, rows):
    folder = write_lerobot(tmp_path / "robot", dtype="video")
    videos = sorted(folder.rglob("*.mp4"))
    shutil.copyfile(videos[1], videos[0])  # of three frames for five rows
    with pytest.raises(DatasetError, match=r"episode_000000.parquet.*got none"):
        open_dataset(folder)
    shutil.copyfile(sorted(write_lerobot(tmp_path / "other", dtype="video").rglob("*.mp4"))[0], videos[0])
    shutil.copyfile(videos[0], videos[1])
    with pytest.raises(DatasetError, match="expected as many frames as rows, 3, got 5 in its video"):
        open_dataset(folder)


def test_a_changed_clone_is_read_again_and_an_unchanged_one_is_not(tmp_path, monkeypatch):
    folder = write_atari_parquet(tmp_path / "clone")
    place = local_dataset(folder)
    monkeypatch.setattr(hub_sets, "write_episodes", lambda *_: pytest.fail("read again"))
    assert local_dataset(folder) == place
    monkeypatch.undo()
    write_atari_parquet(folder, action=[5] * 8)
    assert open_dataset(folder).actions.tolist() == [5] * 8


def test_options_for_the_hub_need_a_dataset_of_it(tmp_path):
    record(tmp_path / "recorded")
    assert local_datasets([tmp_path / "recorded"], HubOptions()) == (tmp_path / "recorded",)
    with pytest.raises(UserError, match="--columns, --data-game and --action-ids are for datasets of the hub"):
        local_datasets([tmp_path / "recorded"], HubOptions(data_game="Pong"))


def test_folders_of_pictures_are_no_datasets(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(encode_png(make_frames(1)[0]))
    assert not is_dataset(tmp_path / "pictures")
    assert not is_dataset(tmp_path / "missing")
    assert is_dataset(write_atari_parquet(tmp_path / "clone"))
    assert is_dataset(write_lerobot(tmp_path / "robot"))
    assert is_dataset("hf://owner/set")


def record(path, agent="planner", commanded="python -m agents.record --game Pong", seeds=(7, 3)):
    """A directory of recorded games."""
    info = DatasetInfo("Pong", PONG, MACHADO2018, agent, "planner", "abc", {"numpy": "2"}, commanded)
    for seed in seeds:
        rng = np.random.default_rng(seed)
        episode = Episode(
            frames=make_frames(4, seed=seed),
            actions=rng.integers(6, size=4),
            rewards=rng.normal(size=4).astype(np.float32),
            action_values=rng.normal(size=(4, 6)).astype(np.float32),
            terminated=seed == 7,
            truncated=seed != 7,
            seed=seed,
        )
        EpisodeWriter(path, info).append(episode)
    return path


def assert_same_rows(one, other):
    assert (one.info, one.seeds) == (other.info, other.seeds)
    for name in ("actions", "rewards", "action_values", "terminated", "truncated", "starts"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert [one.frame(row).tobytes() for row in range(len(one))] == [
        other.frame(row).tobytes() for row in range(len(other))
    ]


def test_recorded_games_come_back_from_an_export_the_same(tmp_path, capsys):
    recorded = EpisodeDataset(record(tmp_path / "recorded"))
    assert command("--export-from", tmp_path / "recorded", "--out", tmp_path / "hub", "--license", "cc0-1.0") == 0
    assert "exported 2 episodes" in capsys.readouterr().out
    assert_same_rows(open_dataset(tmp_path / "hub"), recorded)
    rows = load_dataset(str(tmp_path / "hub"), split="train")  # as anyone reads it
    assert rows["action"] == recorded.actions.tolist()
    assert rows["episode"] == [3] * 4 + [7] * 4
    assert np.array_equal(np.asarray(rows[5]["frame"]), recorded.frame(5))
    assert command("--import-from", tmp_path / "hub", "--out", tmp_path / "imported") == 0
    assert_same_rows(EpisodeDataset(tmp_path / "imported"), recorded)


def test_a_card_tells_what_a_reader_asks_for(tmp_path):
    recorded = EpisodeDataset(record(tmp_path / "recorded"))
    assert command("--export-from", tmp_path / "recorded", "--out", tmp_path / "hub") == 0
    card = DatasetCard.load(tmp_path / "hub" / "README.md")
    assert card.data.license is None
    assert card.data.size_categories == ["n<1K"]
    assert {"atari", "pvplay"} <= set(card.data.tags)
    assert card.data.to_dict()["game"] == "Pong"
    assert [one["name"] for one in card.data.to_dict()["dataset_info"]["features"]][:2] == ["frame", "action"]
    for told in ("| agent | planner |", "repeat\\_action\\_probability | 0.25 |", "Licence: none was named"):
        assert told in card.text
    assert "python -m agents.record --game Pong" in card.text
    for seed, score in zip(recorded.seeds, recorded.scores, strict=True):
        assert f"| {seed} | 4 | {score:g}".replace("-", "-") in card.text


def test_texts_of_others_mark_up_nothing_in_a_card(tmp_path):
    agent = "x |\n---\nlicense: mit\n</td><script>alert(1)</script> [a](http://b) `c`"
    record(tmp_path / "recorded", agent, "echo '```\n# heading'")
    assert command("--export-from", tmp_path / "recorded", "--out", tmp_path / "hub") == 0
    card = DatasetCard.load(tmp_path / "hub" / "README.md")
    assert card.data.license is None
    assert card.data.pretty_name.startswith("Pong, played by x |")
    assert "<script>" not in card.text
    assert "[a](" not in card.text
    fenced = [line for line in card.text.splitlines() if line.startswith("````")]
    assert len(fenced) == 2  # longer than the one inside


def test_an_export_replaces_its_own_directory_alone(tmp_path, capsys):
    record(tmp_path / "recorded")
    arguments = ("--export-from", tmp_path / "recorded", "--out", tmp_path / "hub")
    assert command(*arguments) == command(*arguments) == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert command("--export-from", tmp_path / "recorded", "--out", tmp_path / "mine") == 2
    assert command("--export-from", tmp_path / "recorded", "--out", tmp_path / "recorded") == 2
    assert "would be written over what is read" in capsys.readouterr().err


def test_a_dataset_of_another_layout_is_imported_once(tmp_path, capsys):
    folder = write_lerobot(tmp_path / "robot")
    assert command("--import-from", folder, "--out", tmp_path / "data") == 0
    assert command("--import-from", folder, "--out", tmp_path / "data") == 0
    assert "imported 0 episodes" in capsys.readouterr().out
    assert len(EpisodeDataset(tmp_path / "data")) == sum(LENGTHS)
    assert json.loads((tmp_path / "data" / INFO).read_text())["versions"]["columns"] == "lerobot"


def test_the_import_refuses_arguments_that_contradict(capsys, tmp_path):
    assert command("--out", tmp_path / "a") == 2
    assert command("--out", tmp_path / "a", "--import-from", "x", "--license", "mit") == 2
    assert command("--out", tmp_path / "a", "--export-from", "x", "--data-game", "Pong") == 2
    assert capsys.readouterr().err.count("error: ") == 3


def write_repeated(file, **columns):
    """A file in which one value stands in every row, so that it takes a few bytes."""
    file.parent.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), file, row_group_size=64, compression="zstd")
    return file.parent


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [b"x" * 2**22] * 64}, "expected at most 2,097,152 bytes in a value, got 4,194,304"),
        ({"image": [b"x"] * 64, "action": ["x" * 2**14] * 64}, "expected at most 4,096 bytes in a value, got 16,384"),
        ({"image": [b"x"] * 64, "episode": [[1] * 100] * 64}, "expected one value in a row of episode, got 6,400"),
        ({"image": [1.5] * 64}, "expected pictures in column image, got double"),
    ],
)
def test_values_that_would_fill_the_memory_are_refused(tmp_path, columns, message):
    folder = write_repeated(tmp_path / "own" / "a.parquet", **{"action": [0] * 64, "episode": [0] * 64} | columns)
    with pytest.raises(DatasetError, match=message):
        open_dataset(folder, HubOptions(data_game="Pong"))


def test_a_pointer_of_git_lfs_is_told_from_a_damaged_file(tmp_path):
    folder = write_atari_parquet(tmp_path / "clone")
    (file,) = folder.glob("data/*.parquet")
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(DatasetError, match="is a pointer of Git LFS in place of the file: get it by git lfs pull"):
        open_dataset(folder)
    file.write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(DatasetError, match=r"pong-00000-of-00001.parquet is damaged"):
        open_dataset(folder)
