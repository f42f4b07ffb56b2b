"""An SB3 archive plays the actions that SB3 plays, whatever made it; one that cannot is refused in one line."""

import io
import json
import pickle
import re
import time
import zipfile

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from agents.experts.sb3_callbacks import BestModelCallback, TrainingClock
from agents.sb3_agent import OBSERVATIONS, Sb3Agent, action_scores, read_policy
from common.command import run
from common.errors import UserError

ACTIONS = 6


class Noise(gymnasium.Env):
    """Frames of noise."""

    observation_space, action_space = OBSERVATIONS, spaces.Discrete(ACTIONS)

    def reset(self, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


class OtherExtractor(BaseFeaturesExtractor):
    """Not one of SB3's own."""

    def __init__(self, space):
        super().__init__(space, 8)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(4 * 84 * 84, 8))

    def forward(self, x):
        return self.layers(x)


def save(algorithm, path, **policy_kwargs):
    """Save an untrained learner whose weights are far from their symmetric start; return it."""
    options = {"buffer_size": 1} if algorithm in (DQN, QRDQN) else {"n_steps": 4}
    model = algorithm("CnnPolicy", Noise(), seed=1, device="cpu", policy_kwargs=policy_kwargs or None, **options)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng) * 0.05)
    model.save(path)
    return model


def assert_same_actions(model, path, at_least=2):
    frames = np.random.default_rng(0).integers(0, 256, (64, 4, 84, 84), dtype=np.uint8)
    frames[:32] = frames[:32, :, :1, :1]  # flat ones, so that the actions differ
    expected = model.predict(frames, deterministic=True)[0]
    assert len(set(expected.tolist())) >= at_least  # else equal by accident
    policy = read_policy(path, ACTIONS)
    assert np.array_equal(policy.predict(frames, deterministic=True)[0], expected)
    with torch.inference_mode():
        scores = action_scores(policy, frames)
    assert scores.shape == (64, ACTIONS)
    assert np.array_equal(scores.argmax(axis=1), expected)


def test_an_actor_draws_its_actions_at_a_temperature_and_a_value_network_cannot(tmp_path):
    save(PPO, tmp_path / "ppo.zip")
    save(DQN, tmp_path / "dqn.zip")
    names, count = ("noop", "fire", "right", "left", "right fire", "left fire"), 400
    frames = np.broadcast_to(np.full((1, 1, 1, 3), 90, np.uint8), (count, 210, 160, 3))

    def play(temperature):
        agent = Sb3Agent(tmp_path / "ppo.zip", names, temperature)
        agent.reset(range(count))
        return agent.act(frames)

    actions = play(1.0)
    shares = np.bincount(actions.indices, minlength=len(names)) / count
    assert np.abs(shares - actions.scores[0]).max() < 0.1
    assert np.count_nonzero(shares) > 1
    assert np.array_equal(play(1.0).indices, actions.indices)
    assert set(play(0.0).indices) == set(play(0.01).indices) == {actions.scores[0].argmax()}
    with pytest.raises(UserError, match=r"dqn.zip values actions and has no probabilities .* expected temperature 0"):
        Sb3Agent(tmp_path / "dqn.zip", names, 0.5)


def rewrite(path, **members):
    """Replace members of an archive; None leaves one out."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in {**content, **members}.items():
            if value is not None:
                archive.writestr(name, value)


def change_data(path, **values):
    with zipfile.ZipFile(path) as archive:
        data = json.loads(archive.read("data"))
    rewrite(path, data=json.dumps({**data, **values}))


def change_weights(path, edit):
    with zipfile.ZipFile(path) as archive:
        weights = torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)
    buffer = io.BytesIO()
    torch.save(edit(weights) or weights, buffer)
    rewrite(path, **{"policy.pth": buffer.getvalue()})


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The bytes of a small archive of PPO."""
    path = tmp_path_factory.mktemp("ppo") / "small.zip"
    save(PPO, path, features_extractor_kwargs={"features_dim": 16})
    return path.read_bytes()


@pytest.fixture
def small(archive, tmp_path):
    (tmp_path / "small.zip").write_bytes(archive)
    return tmp_path / "small.zip"


@pytest.mark.parametrize(
    ("algorithm", "policy_kwargs"),
    [
        (PPO, {}),
        (PPO, {"share_features_extractor": False}),
        (PPO, {"share_features_extractor": False, "activation_fn": nn.ReLU, "net_arch": {"pi": [32], "vf": [8, 8]}}),
        (PPO, {"net_arch": [32, 16], "features_extractor_kwargs": {"features_dim": 64}}),
        (A2C, {"net_arch": [16], "activation_fn": nn.ELU, "normalize_images": False}),
        (DQN, {"net_arch": [48], "features_extractor_kwargs": {"features_dim": 32}}),
        (QRDQN, {"n_quantiles": 20, "net_arch": [24]}),
        (QRDQN, {}),
    ],
)
def test_it_plays_the_actions_of_sb3(tmp_path, algorithm, policy_kwargs):
    model = save(algorithm, tmp_path / "saved.zip", **policy_kwargs)
    assert_same_actions(model, tmp_path / "saved.zip")


def test_an_archive_of_sb3_1_6_plays_the_actions_of_sb3(tmp_path):
    model = save(PPO, tmp_path / "saved.zip", net_arch=[{"pi": [32], "vf": [32]}])

    def old(weights):
        return {name: t for name, t in weights.items() if not name.startswith(("pi_features", "vf_features"))}

    change_weights(tmp_path / "saved.zip", old)
    assert_same_actions(model, tmp_path / "saved.zip")


@pytest.mark.parametrize(
    ("policy_kwargs", "message"),
    [
        (
            {"features_extractor_class": OtherExtractor},
            "expected the features_extractor_class .*NatureCNN, got .*Other",
        ),
        ({"activation_fn": nn.Softplus}, r"expected an activation_fn \(.*Tanh.*\), got .*Softplus"),
    ],
)
def test_an_architecture_of_other_classes_is_refused_by_name(tmp_path, policy_kwargs, message):
    save(PPO, tmp_path / "saved.zip", **policy_kwargs)
    with pytest.raises(UserError, match=message):
        read_policy(tmp_path / "saved.zip", ACTIONS)


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        *({"net_arch": value} for value in ([10**9], [-1], ["64"], 5, [64, {"pi": [8]}], [[64]], [8] * 99)),
        *({"n_quantiles": value} for value in (0, 10**9, "20", 2.5)),
        {"features_extractor_kwargs": {"features_dim": 10**9}},
        {"features_extractor_kwargs": "x"},
        {"other": 1},
        {"normalize_images": 1},
    ],
)
def test_policy_kwargs_of_other_kinds_end_in_one_line(small, policy_kwargs, capsys):
    change_data(small, policy_kwargs={"features_extractor_kwargs": {"features_dim": 16}})
    assert read_policy(small, ACTIONS)
    change_data(small, policy_kwargs={"features_extractor_kwargs": {"features_dim": 16}, **policy_kwargs})
    assert run(lambda: 0 if read_policy(small, ACTIONS) else 1) == 2
    assert re.fullmatch(r"error: .*small.zip: expected policy_kwargs that .*, got .*\n", capsys.readouterr().err)


def test_the_wrong_number_of_actions_is_refused(small):
    with pytest.raises(UserError, match="was not trained for 4 actions on 4 frames"):
        read_policy(small, 4)


@pytest.mark.parametrize("member", ["data", "policy.pth"])
def test_a_member_that_unpacks_to_too_much_is_refused_at_once(small, member):
    with zipfile.ZipFile(small) as archive:
        other = {name: archive.read(name) for name in ("data", "policy.pth") if name != member}
    with zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, value in other.items():
            archive.writestr(name, value)
        with archive.open(member, "w") as stream:
            for _ in range(300):
                stream.write(bytes(2**20))
    start = time.monotonic()
    with pytest.raises(UserError, match=rf"small\.zip: expected at most 268,435,456 bytes in {member}, got 314,5"):
        read_policy(small, ACTIONS)
    assert time.monotonic() - start < 1


def test_weights_that_unpack_to_too_much_are_refused(small):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as inner:
        for number in range(3):
            inner.writestr(f"archive/data/{number}", bytes(100 * 2**20))
    rewrite(small, **{"policy.pth": buffer.getvalue()})
    with pytest.raises(UserError, match=r"expected at most 268,435,456 bytes of weights, got 314,572,800"):
        read_policy(small, ACTIONS)


def nested_tuples():
    """A pickle of tuples, each twice in the next, as the key of a dict: its hash takes 2 ** 60 steps."""
    return b"\x80\x02}(" + b")" + b"q\x00h\x00\x86" * 60 + b"K\x01u."


def test_weights_whose_pickle_asks_for_endless_work_are_refused(small):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as inner:
        inner.writestr("archive/data.pkl", nested_tuples())
        inner.writestr("archive/version", "3\n")
    rewrite(small, **{"policy.pth": buffer.getvalue()})
    with pytest.raises(UserError, match="refused: expected each tuple in one place"):
        read_policy(small, ACTIONS)


@pytest.mark.parametrize("number", range(150))
def test_a_mutated_archive_loads_or_ends_in_one_line(archive, tmp_path, number, capsys):
    rng, content = np.random.default_rng(number), bytearray(archive)
    central = archive.rindex(b"PK\x05\x06") - 600  # the directory, the densest in decisions
    for _ in range(1 + number % 4):
        start = int(rng.integers(max(0, central), len(content))) if number % 3 else int(rng.integers(len(content)))
        content[start] = int(rng.integers(256))
    if number % 5 == 0:
        del content[int(rng.integers(len(content))) :]
    (tmp_path / "mutated.zip").write_bytes(content)
    if run(lambda: 0 if read_policy(tmp_path / "mutated.zip", ACTIONS) else 1):
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "data",
    ["[" * 200_000, "[]", "5", '{"policy_class": 5}', '{"policy_class": {"__module__": ["a"]}}', "{}", "\xff", "NaN"],
)
def test_data_of_other_kinds_end_in_one_line(small, data, capsys):
    rewrite(small, data=data.encode("latin-1"))
    assert run(lambda: 0 if read_policy(small, ACTIONS) else 1) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_weights_of_other_kinds_end_in_one_line(small, capsys):
    stretched = torch.zeros(1).expand(2**40)
    for weights in ({"a": 1}, [], {"a": torch.zeros(2)}, {}, {"action_net.bias": stretched}):
        change_weights(small, lambda _, weights=weights: weights or {"x": torch.zeros(1)})
        assert run(lambda: 0 if read_policy(small, ACTIONS) else 1) == 2
    rewrite(small, **{"policy.pth": pickle.dumps({"a": 1})})
    assert run(lambda: 0 if read_policy(small, ACTIONS) else 1) == 2
    assert capsys.readouterr().err.count("\n") == 6


def test_weights_that_are_not_finite_are_refused_by_name(small):
    change_weights(small, lambda weights: dict(weights, **{"action_net.bias": torch.full((ACTIONS,), torch.nan)}))
    with pytest.raises(UserError, match=r"finite weights, got NaN or infinity in action_net\.bias"):
        read_policy(small, ACTIONS)


def test_a_save_that_is_killed_leaves_the_archive_before_it(tmp_path):
    class Killed:
        def save(self, path):
            path.write_bytes(b"half an archive")
            raise KeyboardInterrupt

    callback = BestModelCallback(tmp_path, lambda _: [0.0], has_replay_buffer=False, clock=TrainingClock())
    callback.model = Killed()
    for name in ("last.zip", "best.zip"):
        (tmp_path / name).write_bytes(b"the one before")
        with pytest.raises(KeyboardInterrupt):
            callback._save(tmp_path / name)
        assert (tmp_path / name).read_bytes() == b"the one before"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["best.zip", "last.zip"]
