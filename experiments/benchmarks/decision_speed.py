"""How fast the model decides, beside transformers' own constrained generation in the same run.

    python -m experiments.benchmarks.decision_speed --out experiments/results/bench_decide.json

Ours: frames in, action out, as `agents.play` does it: preprocessing, scores of all legal answers in one pass of the
compiled graph, the best. The rival: `generate` with `prefix_allowed_tokens_fn` over the trie of the legal answers, at
its defaults, in float32. One thread, one frame at a time, on the same frames of Ms. Pac-Man (nine legal actions), in
turns of a few decisions, since a player decides many times on end. Beside them: the same scores without the compiled
graph, and how often both choose the same.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro

from agents.random_agent import RandomAgent
from agents.rollout import play_games
from agents.vlm_agent import VlmAgent
from common.command import run
from common.errors import UserError
from common.results import new_result, write_result
from envs.atari import AtariEnvs
from envs.games import find_game
from vlm import checkpoint
from vlm.decoding.candidate_scoring import prompt_ids
from vlm.decoding.openvino_scorer import native_precision
from vlm.model import PixelVLM
from vlm.presets import build
from vlm.pretrained import RELEASED_POLICY
from vlm.prompts import action_prompt


@dataclass
class Args:
    """Time decisions against constrained generation."""

    out: Path
    """The result JSON."""
    game: str = "MsPacman"
    """The game whose frames and legal actions are used."""
    checkpoint: Path | None = None
    """The model; by default the shipped one, or untrained weights of its size where none ships."""
    decisions: int = 150
    """Decisions to time of each."""

    def __post_init__(self) -> None:
        if self.decisions < 10:
            raise UserError(f"--decisions must be at least 10, got {self.decisions}")


TURN = 25  # decisions


def collect_frames(game_name: str, count: int) -> np.ndarray:
    """Return uint8[count, H, W, 3]: frames of random play, from some way into a game."""
    game = find_game(game_name)
    with AtariEnvs(game, 1) as envs:
        turns = play_games(RandomAgent(envs.action_names), envs, [1])
        frames = [turn.frame for turn, _ in zip(turns, range(100 + count), strict=False)]
    return np.stack(frames[100:])


def make_rival(vlm: PixelVLM, prompt: str, names: tuple[str, ...]) -> Callable[[np.ndarray], str]:
    """Return a function from a stack of frames to an answer, by the library's constrained generation."""
    end = vlm.tokenizer.eos_token_id
    answers = [[*vlm.tokenizer(name, add_special_tokens=False)["input_ids"], end] for name in names]

    @torch.inference_mode()
    def answer(stack: np.ndarray) -> str:
        pixels = vlm.preprocess(stack[None])
        ids = torch.tensor([prompt_ids(vlm, prompt, image_ids)])

        def allowed(_: int, so_far: torch.Tensor) -> list[int]:
            said = so_far[ids.shape[1] :].tolist()
            return list(
                {rest[len(said)] for rest in answers if rest[: len(said)] == said and len(rest) > len(said)}
            ) or [end]

        made = vlm.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels,
            prefix_allowed_tokens_fn=allowed,
            max_new_tokens=6,
            do_sample=False,
        )
        return vlm.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)

    with torch.inference_mode():
        image_ids = vlm.image_ids(vlm.preprocess(np.zeros((1, vlm.history, 210, 160, 3), np.uint8)))
    return answer


def take_turns(players: dict[str, Callable[[int], object]], count: int, turn: int = TURN) -> dict[str, list[float]]:
    """Let every player answer frames 0 to `count` - 1, `turn` of them at a time; return the seconds of each answer."""
    times: dict[str, list[float]] = {name: [] for name in players}
    for first in range(0, count, turn):
        for name, answer in players.items():
            for i in range(first, min(first + turn, count)):
                started = time.perf_counter()
                answer(i)
                times[name].append(time.perf_counter() - started)
    return times


def bench(args: Args) -> dict:
    """Time both, turn and turn about; return the row."""
    torch.set_num_threads(1)
    place = args.checkpoint or (RELEASED_POLICY if RELEASED_POLICY.exists() else None)
    vlm = checkpoint.load(place) if place else build("nano")
    game = find_game(args.game)
    with AtariEnvs(game, 1) as envs:
        names = envs.action_names
    frames = collect_frames(args.game, args.decisions)
    agents = {engine: VlmAgent(vlm, game.title, names, engine=engine) for engine in ("auto", "torch")}
    generate = make_rival(vlm, action_prompt(game.title, names), names)
    chosen: dict[str, list[int]] = {engine: [] for engine in agents}

    def decide(engine: str, i: int) -> None:
        chosen[engine].append(int(agents[engine].act(frames[i][None]).indices[0]))

    players: dict[str, Callable[[int], object]] = {engine: partial(decide, engine) for engine in agents}
    players["rival"] = lambda i: generate(frames[[max(i - back, 0) for back in reversed(range(vlm.history))]])
    for agent in agents.values():
        agent.reset([1])
    times = take_turns(players, len(frames))
    agreed = np.equal(chosen["auto"], chosen["torch"])
    fast, plain, slow = (1 / np.median(times[who][1:]) for who in ("auto", "torch", "rival"))
    return {
        "benchmark": "decide",
        "model": checkpoint.content_hash(place) if place else "untrained nano",
        "game": game.name,
        "threads": 1,
        "precision": native_precision(),
        "ours": round(float(fast), 1),
        "ours_torch_float32": round(float(plain), 1),
        "chosen_alike": round(float(np.mean(agreed)), 4),
        "rival": round(float(slow), 1),
        "rival_is": "transformers generate with prefix_allowed_tokens_fn, float32, defaults",
        "ratio": round(float(fast / slow), 2),
        "unit": "decisions per second, median over single frames",
        "turn": TURN,
        "n": len(frames),
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    started = time.monotonic()
    row = bench(args)
    result = new_result("bench_decide", None, []) | {"rows": [row], "seconds": round(time.monotonic() - started, 1)}
    write_result(args.out, result)
    print(f"ours {row['ours']} decisions a second ({row['precision']}), rival {row['rival']}, ratio {row['ratio']}")
    print(f"without the compiled graph {row['ours_torch_float32']}; both choose alike in {row['chosen_alike']:.1%}")
    print(f"result: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
