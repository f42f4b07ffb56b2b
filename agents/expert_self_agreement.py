"""How often an expert agrees with itself: the ceiling of what agreement with its labels can reach.

An expert that searches at random gives different labels of one state.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from agents.checkpoint_selection import SELECTION_SEED
from agents.registry import make_agent, needs_emulator
from common.files import write_text_atomically
from envs.atari import make_envs
from envs.games import find_game
from envs.protocol import MACHADO2018, episode_seeds

NUM_STATES, STATE_INTERVAL = 40, 15  # states that are labelled twice, and steps of random play between them


def expert_self_agreement(out: Path, game_name: str, expert: str) -> dict[str, Any]:
    """Return how far an expert agrees with itself over states of random play, measured once for a directory.

    A network gives each state the same labels.

    Returns:
        `agreement`, the share of states that get the same best action twice; `correlation`, the median over states of
        the correlation of the two labels; `n`, the number of states.
    """
    if not needs_emulator(expert):
        return {"game": game_name, "expert": expert, "agreement": 1.0, "correlation": 1.0, "n": 0}
    file = out / f"label-noise-{game_name}.json"
    if file.exists():
        return json.loads(file.read_text())
    rng, same, correlations = np.random.default_rng(0), [], []
    seeds = iter(episode_seeds(SELECTION_SEED, NUM_STATES))
    with make_envs(find_game(game_name), 1, MACHADO2018, searchable=True) as envs:
        agent: Any = make_agent(expert, envs)

        def start_episode() -> None:
            seed = [next(seeds)]
            envs.reset(seed)
            agent.reset(seed)

        start_episode()
        for number in range(NUM_STATES * STATE_INTERVAL):
            step = envs.step(rng.integers(len(envs.action_names), size=1))
            if step.terminated[0] or step.truncated[0]:
                start_episode()
            if number % STATE_INTERVAL == STATE_INTERVAL - 1:
                first, second = agent.values(0), agent.values(0)
                same.append(int(first.argmax()) == int(second.argmax()))
                correlations.append(_correlation(first, second))
    agreement, correlation = float(np.mean(same)), float(np.nanmedian(correlations))
    found = {"game": game_name, "expert": expert, "agreement": agreement, "correlation": correlation, "n": len(same)}
    write_text_atomically(file, json.dumps(found, indent=1) + "\n")
    return found


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    both = np.isfinite(first) & np.isfinite(second)
    if both.sum() < 2 or first[both].std() == 0 or second[both].std() == 0:
        return float("nan")
    return float(np.corrcoef(first[both], second[both])[0, 1])
