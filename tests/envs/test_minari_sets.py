"""Minari datasets are imported and exported with game, protocol and frames intact."""

import json
from copy import deepcopy
from dataclasses import replace

import gymnasium
import minari
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec, WrapperSpec
from minari.data_collector.episode_buffer import EpisodeBuffer

from common.errors import UserError
from envs import minari_sets
from envs.atari import AtariEnvs, EmulatorEnvs
from envs.episodes import DatasetError, DatasetInfo, Episode, EpisodeDataset, EpisodeWriter
from envs.games import MultiPlayerGameError, UnknownGameError, find_game
from envs.minari_sets import MinariError, export_minari, import_minari
from envs.protocol import MACHADO2018, MNIH2015, Protocol

BREAKOUT = find_game("Breakout")
PLAIN = Protocol("plain", 0.0, 4, 0, False, 160)  # 40 steps, the same for every seed
ID = "atari/breakout/random-v0"

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Minari asks for author, e-mail, ...


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty directory of Minari datasets, and no downloads."""

    def refuse(dataset_id):
        raise ConnectionError(f"the hub cannot be reached\nfor {dataset_id}")

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setattr(minari, "download_dataset", refuse)
    return tmp_path / "minari"


def play_gymnasium(seed, **settings):
    """Play random actions in gymnasium's environment; return one episode as Minari records it."""
    env = gymnasium.make("ALE/Breakout-v5", **settings)
    rng = np.random.default_rng(seed)
    frames, actions, rewards, ends = [env.reset(seed=seed)[0]], [], [], []
    while not ends or not any(ends[-1]):
        actions.append(int(rng.choice([1, 2, 3])))
        frame, reward, terminated, truncated, _ = env.step(actions[-1])
        frames.append(frame)
        rewards.append(reward)
        ends.append((terminated, truncated))
    terminations, truncations = np.array(ends).T
    return env.spec, EpisodeBuffer(
        seed=2**63 + seed,  # Minari draws 64 bits
        observations=np.stack(frames),
        actions=np.array(actions),
        rewards=np.array(rewards),
        terminations=terminations,
        truncations=truncations,
    )


def make_set(buffers, spec, dataset_id=ID, jpeg=False, shape=(210, 160, 3), actions=4):
    return minari.create_dataset_from_buffers(
        dataset_id,
        buffers,
        env=spec,
        observation_space=gymnasium.spaces.Box(0, 255, shape, np.uint8),
        action_space=gymnasium.spaces.Discrete(actions),
        algorithm_name="PPO",
        code_permalink="https://example.org/code",
        jpeg_encoding=jpeg,
    )


def make_buffer(length=3, shape=(210, 160, 3), terminated=True, actions=None):
    frames = np.random.default_rng(0).integers(0, 256, (length + 1, *shape), dtype=np.uint8)
    last = np.arange(length) == length - 1
    return EpisodeBuffer(
        observations=frames,
        actions=np.zeros(length, dtype=int) if actions is None else actions,
        rewards=np.ones(length),
        terminations=last & terminated,
        truncations=last & False,
    )


def make_spec(env_id="ALE/Breakout-v5", **kwargs):
    spec = deepcopy(gymnasium.spec(env_id))
    spec.kwargs.update(kwargs)
    return spec


def record_breakout(path, seeds=(11, 12), values=True):
    """Record episodes under `PLAIN` as `agents.record` does; return them."""
    info = DatasetInfo("Breakout", ("noop", "fire", "right", "left"), PLAIN, "random", "planner", "abc", {"a": "1"})
    writer = EpisodeWriter(path, info)
    rng = np.random.default_rng(1)  # its first episode scores
    episodes = []
    for seed in seeds:
        with EmulatorEnvs(BREAKOUT, 1, PLAIN) as envs:
            frames, rewards = [envs.reset([seed])[0]], []
            actions = np.array([rng.integers(4) for _ in range(40)])
            for action in actions:
                step = envs.step(np.array([action]))
                frames.append(step.frames[0])
                rewards.append(step.rewards[0])
        labelled = rng.random((40, 4)).astype(np.float32)
        labelled[5] = np.nan
        labels = labelled if values else None
        episodes.append(Episode(np.stack(frames[:-1]), actions, np.array(rewards), labels, False, True, seed))
        writer.append(episodes[-1])
    return info, episodes


@pytest.fixture
def published(root):
    """A small dataset as Minari publishes them: gymnasium's frames, no sticky actions, a limit in steps."""
    games = [play_gymnasium(seed, repeat_action_probability=0, max_episode_steps=40) for seed in (9, 5)]  # 9 scores
    return make_set([buffer for _, buffer in games], games[0][0]), [buffer for _, buffer in games]


def test_an_import_has_the_frames_actions_and_rewards_of_the_published_episodes(published, tmp_path):
    _, buffers = published
    assert import_minari(ID, tmp_path / "out") == 2
    data = EpisodeDataset(tmp_path / "out")
    assert data.seeds == [0, 1]
    assert len(data) == 80
    frames = np.stack([data.frame(row) for row in range(80)])
    assert np.array_equal(frames, np.concatenate([buffer.observations[:-1] for buffer in buffers]))
    assert np.array_equal(data.actions, np.concatenate([buffer.actions for buffer in buffers]))
    assert np.array_equal(data.rewards, np.concatenate([buffer.rewards for buffer in buffers]))
    assert np.isnan(data.action_values).all()


def test_an_import_recovers_game_protocol_agent_and_source(published, tmp_path):
    import_minari(ID, tmp_path / "out")
    info = EpisodeDataset(tmp_path / "out").info
    assert info.game == "Breakout"
    assert info.action_names == ("noop", "fire", "right", "left")
    assert info.protocol == Protocol("minari", 0.0, 4, 0, False, 160)
    assert info.agent == f"PPO of {ID}"
    assert info.commit == "https://example.org/code"
    assert info.versions == {"minari": minari.__version__, "frames": "exact"}
    assert info.labels is None


def test_imported_actions_earn_the_same_rewards_in_our_environments(published, tmp_path):
    import_minari(ID, tmp_path / "out")
    data = EpisodeDataset(tmp_path / "out")
    with EmulatorEnvs(BREAKOUT, 1, data.info.protocol) as envs:
        envs.reset([77])
        steps = [envs.step(np.array([action])) for action in data.actions[:40]]
    assert [step.rewards[0] for step in steps] == data.rewards[:40].tolist()
    assert data.rewards[:40].sum() > 0
    assert [bool(step.truncated[0]) for step in steps] == [False] * 39 + [True]


def test_an_interrupted_import_resumes(published, tmp_path):
    import_minari(ID, tmp_path / "out")
    (tmp_path / "out" / "data" / "episode-00000001.parquet").unlink()
    kept = tmp_path / "out" / "data" / "episode-00000000.parquet"
    before = kept.stat().st_mtime_ns
    assert import_minari(ID, tmp_path / "out") == 1
    assert import_minari(ID, tmp_path / "out") == 0
    assert kept.stat().st_mtime_ns == before
    assert len(EpisodeDataset(tmp_path / "out")) == 80


def test_the_info_records_lossy_frames(tmp_path):
    make_set([make_buffer()], make_spec(), jpeg=True)
    import_minari(ID, tmp_path / "out")
    assert EpisodeDataset(tmp_path / "out").info.versions["frames"] == "JPEG, not exact"


def test_the_default_environment_has_the_protocol_machado2018(tmp_path):
    make_set([make_buffer()], make_spec())
    import_minari(ID, tmp_path / "out")
    assert EpisodeDataset(tmp_path / "out").info.protocol == MACHADO2018


def test_an_episode_without_a_frame_limit_is_not_truncated(tmp_path):
    make_set([make_buffer()], make_spec(max_num_frames_per_episode=None))
    import_minari(ID, tmp_path / "out")
    for make in (AtariEnvs, EmulatorEnvs):
        with make(BREAKOUT, 1, EpisodeDataset(tmp_path / "out").info.protocol) as envs:
            envs.reset([1])
            assert not any(envs.step(np.array([0])).truncated[0] for _ in range(5))


@pytest.mark.parametrize(("terminated", "expected"), [(True, (1, 0)), (False, (0, 1))])
def test_an_episode_that_is_not_terminated_is_truncated(tmp_path, terminated, expected):
    make_set([make_buffer(terminated=terminated)], make_spec())
    import_minari(ID, tmp_path / "out")
    data = EpisodeDataset(tmp_path / "out")
    assert (data.terminated.sum(), data.truncated.sum()) == expected


def test_an_exported_dataset_is_imported_bit_by_bit(tmp_path):
    info, _ = record_breakout(tmp_path / "ours")
    assert export_minari(tmp_path / "ours", ID) == 2
    assert import_minari(ID, tmp_path / "back") == 2
    ours, back = EpisodeDataset(tmp_path / "ours"), EpisodeDataset(tmp_path / "back")
    assert back.info == ours.info == info
    assert back.seeds == ours.seeds == [11, 12]
    assert np.array_equal(back.actions, ours.actions)
    assert np.array_equal(back.rewards, ours.rewards)
    assert np.array_equal(back.action_values, ours.action_values, equal_nan=True)
    assert all(np.array_equal(back.frame(row), ours.frame(row)) for row in range(len(ours)))
    assert np.array_equal(back.terminated, ours.terminated)
    assert np.array_equal(back.truncated, ours.truncated)


def test_an_export_keeps_no_op_starts_which_gymnasium_lacks(tmp_path):
    info, episodes = record_breakout(tmp_path / "ours", seeds=[3], values=False)
    writer = EpisodeWriter(tmp_path / "mnih", replace(info, protocol=MNIH2015, labels=None))
    writer.append(episodes[0])
    export_minari(tmp_path / "mnih", ID)
    import_minari(ID, tmp_path / "back")
    assert EpisodeDataset(tmp_path / "back").info.protocol == MNIH2015
    assert np.isnan(EpisodeDataset(tmp_path / "back").action_values).all()


def test_minari_reads_an_export(tmp_path):
    _, episodes = record_breakout(tmp_path / "ours")
    export_minari(tmp_path / "ours", ID)
    data = minari.load_dataset(ID)
    assert list(minari.list_local_datasets()) == [ID]
    assert data.total_episodes == 2
    assert data.total_steps == 80
    for stored, ours in zip(data, episodes, strict=True):
        assert np.array_equal(stored.observations[:-1], ours.frames)
        assert np.array_equal(stored.observations[-1], ours.frames[-1])
        assert np.array_equal(stored.actions, ours.actions)
        assert stored.truncations.tolist() == [False] * 39 + [True]
        assert not stored.terminations.any()
        assert len(stored.infos["action_values"]) == 41


@pytest.mark.slow
def test_the_environment_recovered_from_an_export_plays_the_same_episode(tmp_path):
    _, episodes = record_breakout(tmp_path / "ours")
    export_minari(tmp_path / "ours", ID)
    env = minari.load_dataset(ID).recover_environment()
    env.reset(seed=0)
    steps = [env.step(action) for action in episodes[0].actions]
    assert [reward for _, reward, *_ in steps] == episodes[0].rewards.tolist()
    assert episodes[0].score > 0
    assert [truncated for *_, truncated, _ in steps] == [False] * 39 + [True]


def test_an_existing_minari_dataset_is_not_overwritten(tmp_path):
    record_breakout(tmp_path / "ours", seeds=[1])
    export_minari(tmp_path / "ours", ID)
    with pytest.raises(MinariError, match=f"a Minari dataset {ID} exists at .*; choose another name or version"):
        export_minari(tmp_path / "ours", ID)


def test_a_failed_export_leaves_nothing_behind(tmp_path, root, monkeypatch):
    record_breakout(tmp_path / "ours")
    make_buffer = minari_sets._make_buffer

    def fail_at_the_second(data, seed, start, stop):
        if seed == 12:
            raise OSError("disk full")
        return make_buffer(data, seed, start, stop)

    monkeypatch.setattr(minari_sets, "_make_buffer", fail_at_the_second)
    with pytest.raises(OSError, match="disk full"):
        export_minari(tmp_path / "ours", ID)
    assert list(root.iterdir()) == []


def test_a_missing_dataset_is_not_exported(tmp_path, root):
    with pytest.raises(DatasetError, match=r"with info\.json in it, got .*nowhere"):
        export_minari(tmp_path / "nowhere", ID)
    assert not root.exists() or list(root.iterdir()) == []


@pytest.mark.parametrize("dataset_id", ["atari/mspacman/expert", "../other-v0", "", "a b-v1", "x/y-v1"])
def test_an_invalid_id_is_refused(tmp_path, dataset_id):
    for act in (lambda: import_minari(dataset_id, tmp_path), lambda: export_minari(tmp_path, dataset_id)):
        with pytest.raises(MinariError, match="expected a Minari id with a version, such as"):
            act()


def test_a_missing_dataset_is_refused_with_the_reason_and_the_nearest(tmp_path):
    make_set([make_buffer()], make_spec())
    message = (
        r"^no local Minari dataset atari/breakout/expert-v0, and no download: the hub cannot be reached; "
        r"nearest local ones: atari/breakout/random-v0$"
    )
    with pytest.raises(UserError, match=message):
        import_minari("atari/breakout/expert-v0", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_dataset_that_is_not_local_is_downloaded(tmp_path, monkeypatch):
    def download(dataset_id):
        make_set([make_buffer()], make_spec(), dataset_id)

    monkeypatch.setattr(minari, "download_dataset", download)
    assert import_minari("atari/breakout/expert-v0", tmp_path / "out") == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (None, "does not name its environment"),
        ("CartPole-v1", f"expected a Minari dataset of an Atari game, got {ID} of CartPole-v1"),
        (make_spec(frameskip=(2, 5)), rf"expected a fixed frame skip, but {ID} skips \[2, 5\] frames"),
        (
            make_spec(mode=4, difficulty=1),
            f"expected the default game, but {ID} sets its mode and difficulty",
        ),
        (
            make_spec(full_action_space=True),
            rf"expected the 18 actions of Breakout; {ID} holds Discrete\(4\)",
        ),
        (make_spec("ALE/Carnival-v5"), r"expected frames uint8\[214, 160, 3\] of Carnival"),
    ],
    ids=["none", "not Atari", "random skip", "mode", "actions", "screen"],
)
def test_a_dataset_of_anything_but_an_unmodified_atari_game_is_refused(tmp_path, spec, message):
    make_set([make_buffer()], gymnasium.spec(spec) if isinstance(spec, str) else spec)
    with pytest.raises(MinariError, match=message):
        import_minari(ID, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_dataset_recorded_through_a_wrapper_is_refused(tmp_path):
    clip = WrapperSpec("ClipReward", "gymnasium.wrappers:ClipReward", {"min_reward": -1, "max_reward": 1})
    spec = EnvSpec("ALE/Breakout-v5", "ale_py.env:AtariEnv", kwargs={"game": "breakout"}, additional_wrappers=(clip,))
    make_set([make_buffer()], spec)
    with pytest.raises(MinariError, match=f"expected the unwrapped game, but {ID} was recorded through ClipReward"):
        import_minari(ID, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "kwargs", "frames"),
    [
        ("Monitor", None, 108_000),
        ("TimeLimit", {"max_episode_steps": 50}, 200),
        ("TimeLimit", None, 108_000),
    ],
)
def test_a_wrapper_that_changes_nothing_is_accepted_and_a_time_limit_is_kept(tmp_path, root, name, kwargs, frames):
    wrapper = WrapperSpec(name, f"somewhere:{name}", kwargs)
    settings = {"game": "breakout", "max_num_frames_per_episode": 108_000}
    spec = EnvSpec("ALE/Breakout-v5", "ale_py.env:AtariEnv", kwargs=settings, additional_wrappers=(wrapper,))
    make_set([make_buffer()], make_spec())
    metadata = next(root.rglob("metadata.json"))
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"env_spec": spec.to_json()}))
    assert import_minari(ID, tmp_path / "out") == 1
    assert EpisodeDataset(tmp_path / "out").info.protocol.max_episode_frames == frames


def test_grey_frames_are_refused(tmp_path):
    make_set([make_buffer(shape=(210, 160))], make_spec(obs_type="grayscale"), shape=(210, 160))
    with pytest.raises(MinariError, match=r"expected frames uint8\[210, 160, 3\] of Breakout; .* holds Box"):
        import_minari(ID, tmp_path / "out")


@pytest.mark.parametrize(
    ("game", "error", "message"),
    [("nonesuch", UnknownGameError, "got 'nonesuch'"), ("joust", MultiPlayerGameError, "needs two players")],
)
def test_an_unknown_or_two_player_game_is_refused(tmp_path, root, game, error, message):
    make_set([make_buffer()], make_spec())
    file = root / ID / "data" / "metadata.json"
    file.write_text(file.read_text().replace(r"\"game\": \"breakout\"", rf"\"game\": \"{game}\""))
    with pytest.raises(error, match=message):
        import_minari(ID, tmp_path / "out")


def test_an_inconsistent_episode_is_named(tmp_path):
    make_set([make_buffer(), make_buffer(actions=np.array([0, 9, 0]))], make_spec())
    with pytest.raises(MinariError, match=f"{ID}, episode 1 is damaged: expected actions from 0 to 3, got 0 to 9"):
        import_minari(ID, tmp_path / "out")
    assert EpisodeDataset(tmp_path / "out").seeds == [0]


@pytest.mark.parametrize("file", ["main_data.hdf5", "metadata.json"])
@pytest.mark.parametrize("content", [None, b"{"], ids=["gone", "broken"])
def test_a_damaged_dataset_is_named(tmp_path, root, file, content):
    make_set([make_buffer()], make_spec())
    damaged = root / ID / "data" / file
    damaged.unlink() if content is None else damaged.write_bytes(content)
    with pytest.raises(MinariError, match=rf"^Minari dataset {ID}.* is damaged: \S"):
        import_minari(ID, tmp_path / "out")


def test_an_export_with_inconsistent_metadata_is_refused(tmp_path, root):
    record_breakout(tmp_path / "ours", seeds=[1])
    export_minari(tmp_path / "ours", ID)
    file = root / ID / "data" / "metadata.json"
    metadata = json.loads(file.read_text())
    file.write_text(json.dumps({**metadata, "pvplay": {**metadata["pvplay"], "game": "Pong"}}))
    with pytest.raises(MinariError, match=r"the metadata of .* names Pong, but its environment is Breakout"):
        import_minari(ID, tmp_path / "out")


def test_an_import_does_not_mix_with_episodes_of_another_agent(published, tmp_path):
    record_breakout(tmp_path / "ours", seeds=[1])
    with pytest.raises(DatasetError, match="needs a directory of its own"):
        import_minari(ID, tmp_path / "ours")
