"""The expert of Freeway values what an action leads to, and leaves the emulator as it was."""

import numpy as np

from agents.experts.freeway_expert import HORIZON, FreewayExpert
from envs.atari import EmulatorEnvs
from envs.games import find_game


def test_every_action_has_a_value_and_a_free_road_is_crossed_at_once():
    with EmulatorEnvs(find_game("Freeway"), 1) as envs:
        envs.reset([5])
        for _ in range(2):
            envs.step(np.array([1]))
        emulator = envs.emulators[0]
        before = emulator.ram.copy()
        values = FreewayExpert(envs.action_names).values(emulator, np.random.default_rng(0))
        assert np.array_equal(emulator.ram, before)
        up, noop, down = (values[envs.action_names.index(name)] for name in ("up", "noop", "down"))
        assert up > noop > down
        assert up > 3 * HORIZON  # pixels; four a step
