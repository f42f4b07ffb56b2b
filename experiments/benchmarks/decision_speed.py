"""Speed of agent steps, beside transformers' own constrained generation in the same run.

    python -m experiments.benchmarks.decision_speed --out experiments/results/decision_speed.json

Candidate: frame in, action out, as in `agents.play`: preprocessing, then all legal answers scored in one pass of the
compiled graph. Baseline: `generate` with `prefix_allowed_tokens_fn` over the trie of the legal answers, with defaults,
in float32. One thread, one frame at a time, on the same frames of a game, interleaved in blocks of a few steps. The row
also holds the speed without the compiled graph and the fraction of steps in which both choose the same action.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch

from agents.random_agent import RandomAgent
from agents.rollout import play_games
from agents.vlm_agent import VlmAgent
from common.command import require_at_least, run
from envs.atari import AtariEnvs
from envs.games import Game, action_names, find_game
from experiments.benchmarks.harness import BenchmarkArgs, Row, benchmark_main, comparison, interleaved
from vlm.decoding.candidate_scoring import prompt_ids
from vlm.decoding.openvino_scorer import native_precision
from vlm.model import PixelVLM
from vlm.prompts import action_prompt
from vlm.released_checkpoints import RELEASED_POLICY

BLOCK = 25  # agent steps between turns
FIRST_FRAME = 100  # of random play


@dataclass(kw_only=True)
class Args(BenchmarkArgs):
    """Time agent steps against constrained generation. The default model is the released policy."""

    game: str = "MsPacman"
    """The game of the frames and legal actions."""
    rounds: int = 150
    """Agent steps to time, of each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 10, "rounds")
        self.checkpoint = self.checkpoint or (RELEASED_POLICY if RELEASED_POLICY.exists() else None)


def collect_frames(game: Game, count: int) -> np.ndarray:
    """Return uint8[count, H, W, 3]: frames of random play, after the start of a game."""
    with AtariEnvs(game, 1) as envs:
        steps = play_games(RandomAgent(envs.action_names), envs, [1])
        return np.stack([step.frame for step in islice(steps, FIRST_FRAME, FIRST_FRAME + count)])


def constrained_generation(vlm: PixelVLM, prompt: str, names: tuple[str, ...]) -> Callable[[np.ndarray], str]:
    """Return the baseline: a function from a frame stack to one of the legal answers."""
    end = vlm.tokenizer.eos_token_id
    answers = [[*vlm.tokenizer(name, add_special_tokens=False)["input_ids"], end] for name in names]

    @torch.inference_mode()
    def answer(stack: np.ndarray) -> str:
        ids = torch.tensor([prompt_ids(vlm, prompt, image_ids)])

        def allowed(_: int, prefix: torch.Tensor) -> list[int]:
            done = prefix[ids.shape[1] :].tolist()
            rest = [tokens[len(done) :] for tokens in answers if tokens[: len(done)] == done]
            return list({tokens[0] for tokens in rest if tokens}) or [end]

        output = vlm.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=vlm.preprocess(stack[None]),
            prefix_allowed_tokens_fn=allowed,
            max_new_tokens=6,
            do_sample=False,
        )
        return vlm.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)

    with torch.inference_mode():
        image_ids = vlm.image_ids(vlm.preprocess(np.zeros((1, vlm.history, 210, 160, 3), np.uint8)))
    return answer


def measure(args: Args) -> list[Row]:
    """Return the row."""
    vlm, game = args.load_model(), find_game(args.game)
    names, frames = action_names(game), collect_frames(game, args.rounds)
    agents = {engine: VlmAgent(vlm, game.title, names, engine=engine) for engine in ("auto", "torch")}
    generate = constrained_generation(vlm, action_prompt(game.title, names), names)
    actions: dict[str, list[int]] = {engine: [] for engine in agents}

    def act(engine: str, i: int) -> None:
        actions[engine].append(int(agents[engine].act(frames[i][None]).indices[0]))

    functions: dict[str, Callable[[int], object]] = {engine: partial(act, engine) for engine in agents}
    functions["baseline"] = lambda i: generate(frames[[max(i - back, 0) for back in reversed(range(vlm.history))]])
    for agent in agents.values():
        agent.reset([1])
    seconds = interleaved(functions, args.rounds, BLOCK)
    speed = {name: float(1 / np.median(times[1:])) for name, times in seconds.items()}
    return [
        comparison(
            "agent step",
            speed["auto"],
            speed["baseline"],
            "transformers `generate` with prefix_allowed_tokens_fn, float32, defaults",
            "agent steps per second, median over single frames",
            candidate_torch_float32=round(speed["torch"], 1),
            same_action=round(float(np.mean(np.equal(actions["auto"], actions["torch"]))), 4),
            model=args.model_name(),
            game=game.name,
            precision=native_precision(),
            block_size=BLOCK,
            n=args.rounds,
        )
    ]


main = benchmark_main(Args, measure, [], __doc__)

if __name__ == "__main__":
    sys.exit(run(main))
