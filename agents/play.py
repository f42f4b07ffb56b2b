"""Play whole games, film and score them.

    python -m agents.play --game Carnival                           the released policy, one game, on video
    python -m agents.play --game "Ms. Pac-Man" --episodes 3 --seed 7
    python -m agents.play --game Pong --agent random --no-video
    python -m agents.play --game Carnival --agent planner --max-frames 2000
    python -m agents.play --game MsPacman --checkpoint runs/clone/best --decode generate
    python -m agents.play --game MsPacman --highlight "the red ghost"

Each game becomes an mp4 at the game's own speed: frames, the agent's text action, the scores of all legal actions as
bars, the running score. Scores are printed beside random, human and published ones, and written as JSON. The same seed
gives the same game and the same video.
"""

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tyro
from tqdm import tqdm

from agents.agent import Agent
from agents.registry import EXPERTS, checkpoint_path, make_agent, needs_emulator, parse_agent_id
from agents.rollout import Transition, play_games
from agents.video import OverlayFrame, Panel, VideoWriter
from common.command import require_at_least, run
from common.errors import UserError
from common.results import RESULTS, new_result, read_result, write_result
from envs.atari import GameEnvs, make_envs
from envs.games import Game, find_game
from envs.protocol import episode_seeds, find_protocol
from envs.reference_scores import MissingReferenceError, all_references, reference
from vlm.pretrained import RELEASED_SEGMENTER

if TYPE_CHECKING:
    from agents.mask_overlay import MaskOverlay

COMMITTED_SCORES = RESULTS / "shipped.json"
MIN_FREE_BYTES = 64 * 2**20


@dataclass
class Args:
    """Play whole games with an agent, film and score them."""

    game: str = "Carnival"
    """The game, in any reasonable spelling: Carnival, "Ms. Pac-Man", ALE/Pong-v5."""
    agent: str = "vlm"
    """vlm, vlm:DIR, random, sb3:PATH, human, or an expert with access to the simulator: planner, mspacman-expert,
    carnival-expert, paddle-expert."""
    checkpoint: Path | None = None
    """The VLM that plays; by default the released policy."""
    episodes: int = 1
    """Number of whole games."""
    seed: int = 0
    """Seed of the games: 0 to 1999; 1000 and up are for published scores."""
    protocol: str = "machado2018"
    """The evaluation protocol: machado2018 (sticky actions) or mnih2015 (no-op starts)."""
    decode: Literal["scores", "generate"] = "scores"
    """scores: the exact probabilities of the legal actions; generate: free text, parsed."""
    temperature: float | None = None
    """Sampling temperature; 0 is greedy; by default the one chosen for the checkpoint."""
    engine: Literal["auto", "torch", "openvino"] = "auto"
    """What computes a VLM's probabilities: torch (float32), openvino (fast on a CPU), auto (openvino on a CPU)."""
    max_frames: int | None = None
    """Stop a game after this many emulator frames (60 a second); it then counts as unfinished."""
    out: Path = Path("videos")
    """Directory of the videos and the JSON."""
    video: bool = True
    """Write a video of each game; --no-video plays faster."""
    highlight: str = ""
    """A referring expression, as "the red ghost": the video shows its mask."""
    segmenter: Path | None = None
    """The checkpoint that segments --highlight (`pretrain.referring`); by default the released one."""
    render: Literal["none", "human"] = "none"
    """human: show the game in a window."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "episodes", "max_frames")
        agent_type, path = parse_agent_id(self.agent)
        if self.checkpoint and (agent_type != "vlm" or path):
            raise UserError(f"--checkpoint is for --agent vlm, got --agent {self.agent}")
        if self.highlight.strip() and not self.video:
            raise UserError("--highlight is drawn in the video, which --no-video leaves out")
        if self.segmenter and not self.highlight.strip():
            raise UserError('--segmenter needs --highlight "an expression"')

    @property
    def agent_id(self) -> str:
        """The agent's id, with the checkpoint."""
        return f"vlm:{self.checkpoint}" if self.checkpoint else self.agent


class EpisodeRecorder:
    """Observes the transitions of one episode after the other: films and shows them, keeps a row for each episode."""

    def __init__(self, args: Args, envs: GameEnvs, agent: Agent):
        self.args, self.envs, self.agent = args, envs, agent
        self.episodes: list[dict[str, Any]] = []
        self._video: VideoWriter | None = None
        self._overlay = _mask_overlay(args) if args.highlight.strip() else None
        self._window = _window(envs) if args.render == "human" else None
        self._start_time = time.monotonic()

    def step(self, transition: Transition) -> None:
        """Record a transition; an episode's first one opens its video, its last one closes it."""
        if transition.step == 0:
            self._start_episode(transition)
        if self._video:
            overlay = self._overlay
            masked = OverlayFrame(overlay.expression, overlay.segment(transition)) if overlay else None
            self._video.step(transition, masked)
        if self._window:
            self._window.show(transition.frame)
        row = self.episodes[-1]
        row["score"], row["steps"] = transition.score, transition.step + 1
        row["invalid"] += int(transition.invalid)
        row["seconds"] = time.monotonic() - self._start_time
        if transition.ended:
            row["finished"] = True
            self.close()

    def _start_episode(self, transition: Transition) -> None:
        game, envs = self.envs.game, self.envs
        row: dict[str, Any] = {"seed": transition.seed, "score": 0.0, "steps": 0, "invalid": 0, "finished": False}
        self._start_time = time.monotonic()
        if self.args.video:
            name = f"{game.name}-{self.agent.name}-seed{self.args.seed}-game{len(self.episodes)}"
            panel = Panel(game.title, self.agent.name, envs.action_names, envs.protocol.frame_skip)
            self._video = VideoWriter(self.args.out / f"{name}.mp4", panel)
            row["video"] = str(self._video.file)
        self.episodes.append(row)

    def close(self) -> None:
        """Finish the current video, so that the recorded part plays."""
        if self._video:
            video, self._video = self._video, None
            video.close()

    def discard(self) -> None:
        """Delete the unfinished video after an error."""
        if self._video:
            self._video.discard()


def _window(envs: GameEnvs) -> Any:
    from agents.human_agent import Window

    return Window(envs.game)


def _mask_overlay(args: Args) -> "MaskOverlay":
    from agents.mask_overlay import MaskOverlay

    return MaskOverlay.load(args.segmenter or RELEASED_SEGMENTER, args.highlight)


def require_writable(out: Path, video: bool) -> None:
    """Refuse a directory that cannot be written, before anything is played."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from error
    free = shutil.disk_usage(out).free
    if video and free < MIN_FREE_BYTES:
        raise UserError(f"--out {out} has {free // 2**20} MiB left; a video needs {MIN_FREE_BYTES // 2**20}")


def run_episodes(args: Args, envs: GameEnvs, agent: Agent, recorder: EpisodeRecorder) -> bool:
    """Play and record; return whether Ctrl-C interrupted the play."""
    bar = tqdm(desc=f"{agent.name} plays {envs.game.title}", unit=" steps")
    max_steps = args.max_frames and -(-args.max_frames // envs.protocol.frame_skip)
    try:
        for seed in episode_seeds(args.seed, args.episodes):  # one by one: max_frames and Ctrl-C end one episode
            for transition in play_games(agent, envs, [seed]):
                recorder.step(transition)
                bar.update()
                progress = f"{len(recorder.episodes)}/{args.episodes}"
                bar.set_postfix(game=progress, score=f"{transition.score:g}", refresh=False)
                if max_steps and transition.step + 1 >= max_steps and not transition.ended:
                    recorder.close()
                    break
    except KeyboardInterrupt:
        recorder.close()
        return True
    except BaseException:
        recorder.discard()
        raise
    finally:
        bar.close()
    return False


def build_result(args: Args, envs: GameEnvs, recorder: EpisodeRecorder, interrupted: bool) -> dict[str, Any]:
    """Return the result (`common.results`); the scores of unfinished games are kept apart."""
    episodes = recorder.episodes
    steps = sum(row["steps"] for row in episodes)
    seconds = sum(row["seconds"] for row in episodes)
    result = new_result("play", envs.protocol.to_dict(), [args.seed])
    result["seconds"], result["interrupted"] = round(seconds, 2), interrupted
    row: dict[str, Any] = {
        "agent": args.agent_id,
        "game": envs.game.name,
        "seed": args.seed,
        "decode": args.decode,
        "scores": [row["score"] for row in episodes if row["finished"]],
        "unfinished_scores": [row["score"] for row in episodes if not row["finished"]],
        "invalid": sum(row["invalid"] for row in episodes) / max(steps, 1),
        "steps": steps,
        "steps_per_second": round(steps / max(seconds, 1e-9), 1),
        "videos": [row["video"] for row in episodes if "video" in row],
    }
    if parse_agent_id(args.agent_id)[0] == "vlm":
        from vlm.checkpoint import content_hash

        row["checkpoint"] = content_hash(checkpoint_path(args.agent_id))
        row["temperature"] = getattr(recorder.agent, "temperature", None)
        row["engine"] = args.engine
    result["rows"] = [row]
    return result


def score_table(game: Game, result: dict[str, Any]) -> str:
    """Return a text table of the agent's scores beside the known ones of the game."""
    row = result["rows"][0]
    scores, unfinished = row["scores"], row["unfinished_scores"]
    lines = [f"{game.title}, {result['protocol']['name']}"]
    if scores:
        spread = f" ({min(scores):,.0f} to {max(scores):,.0f})" if len(scores) > 1 else ""
        games = f"{len(scores)} game{'s' * (len(scores) > 1)}"
        lines.append(f"  {row['agent']:<24}{np.mean(scores):>10,.0f}  {games}{spread}")
    if unfinished:
        lines.append(f"  {row['agent']:<24}{np.mean(unfinished):>10,.0f}  {len(unfinished)} unfinished: no score")
    lines += [f"  {name:<24}{score:>10,.0f}  {note}" for name, score, note in _committed_scores(game)]
    lines += [f"  {r.agent:<24}{r.score:>10,.0f}  {r.protocol}; {r.source}" for r in all_references(game)]
    try:
        reference(game, "human")
    except MissingReferenceError as missing:
        lines.append(f"  human                          -  {missing}")
    lines.append(f"  {row['steps']} steps, {row['steps_per_second']} per second, {row['invalid']:.1%} invalid answers")
    return "\n".join(lines)


def _committed_scores(game: Game) -> list[tuple[str, float, str]]:
    """Return (agent and temperature, mean score, note) of each agent in the committed results of a game."""
    if not COMMITTED_SCORES.is_file():
        return []
    scores: dict[str, list[float]] = {}
    for row in read_result(COMMITTED_SCORES)["rows"]:
        if row["game"] == game.name:
            temperature = "" if row.get("temperature") is None else f" at {row['temperature']:g}"
            scores.setdefault(row["agent"] + temperature, []).extend(row["scores"])
    notes = dict.fromkeys(EXPERTS, "; an expert with access to the simulator")
    return [
        (f"{name} (committed)", float(np.mean(found)), f"{len(found)} games{notes.get(name, '')}")
        for name, found in scores.items()
    ]


def play(args: Args) -> int:
    """Play, record and report; return the exit code."""
    game, protocol = find_game(args.game), find_protocol(args.protocol)
    require_writable(args.out, args.video)
    episode_seeds(args.seed, args.episodes)  # refuses a seed out of range before the model loads
    with make_envs(game, 1, protocol, searchable=needs_emulator(args.agent)) as envs:
        agent = make_agent(args.agent_id, envs, args.decode, args.temperature, args.engine)
        trained_games = getattr(agent, "training", {}).get("games")
        if trained_games is not None and game.name not in trained_games:
            print(f"note: this model was not trained on {game.title}, only on {', '.join(trained_games)}")
        recorder = EpisodeRecorder(args, envs, agent)
        interrupted = run_episodes(args, envs, agent, recorder)
    if not recorder.episodes:
        return 130
    result = build_result(args, envs, recorder, interrupted)
    file = args.out / f"{game.name}-{agent.name}-seed{args.seed}.json"
    write_result(file, result)
    print(score_table(game, result))
    for video in result["rows"][0]["videos"]:
        print(f"video: {video}")
    print(f"result: {file}" + (" (interrupted)" if interrupted else ""))
    return 130 if interrupted else 0


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    return play(tyro.cli(Args, args=argv, description=__doc__))


if __name__ == "__main__":
    sys.exit(run(main))
