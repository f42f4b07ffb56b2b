"""Play whole games, watch and film them.

    python -m agents.play --game Carnival                           the shipped model, one game, on video
    python -m agents.play --game "Ms. Pac-Man" --episodes 3 --seed 7
    python -m agents.play --game Pong --agent random --no-video
    python -m agents.play --game Carnival --agent planner --max-frames 2000
    python -m agents.play --game MsPacman --checkpoint runs/clone/best --decode generate
    python -m agents.play --game MsPacman --highlight "the red ghost"

Each game becomes an mp4 at true speed: the game's frames, the model's text action, the scores of all legal actions as
bars, the running score. The scores are printed beside random, human and published ones, and written as JSON. The same
seed gives the same game and the same pictures.
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
from agents.video import OverlayFrame, VideoWriter
from common.command import run
from common.errors import UserError
from common.results import new_result, read_result, write_result
from envs.atari import GameEnvs, make_envs
from envs.games import Game, find_game
from envs.protocol import episode_seeds, find_protocol
from envs.reference_scores import MissingReferenceError, all_references, reference
from vlm.pretrained import RELEASED_POLICY, RELEASED_SEGMENTER

if TYPE_CHECKING:
    from agents.mask_overlay import MaskOverlay

SCORES = RELEASED_POLICY.parent.parent.parent / "experiments" / "results" / "shipped.json"
LEAST_FREE_BYTES = 64 * 2**20


@dataclass
class Args:
    """Play whole games with an agent, film them and score them."""

    game: str = "Carnival"
    """The game, in any reasonable spelling: Carnival, "Ms. Pac-Man", ALE/Pong-v5."""
    agent: str = "vlm"
    """Who plays: vlm, vlm:DIR, random, planner, mspacman-expert, carnival-expert or paddle-expert (experts with
    access to the simulator), sb3:PATH or human."""
    checkpoint: Path | None = None
    """The model that plays; by default the one that ships with the repository."""
    episodes: int = 1
    """How many whole games."""
    seed: int = 0
    """The games' seed: 0 to 1999, of which 1000 and up are for published scores."""
    protocol: str = "machado2018"
    """The evaluation protocol: machado2018 (sticky actions) or mnih2015 (no-op starts)."""
    decode: Literal["scores", "generate"] = "scores"
    """scores: the exact probabilities of the legal answers; generate: what the model says, parsed."""
    temperature: float | None = None
    """0 plays the most probable action, more draws; by default what was chosen for the checkpoint."""
    engine: Literal["auto", "torch", "openvino"] = "auto"
    """What computes a VLM's scores: openvino (fast on a CPU), torch (float32), auto (openvino if on a CPU)."""
    max_frames: int | None = None
    """Stop a game after so many emulator frames (60 a second); its score is then marked as cut."""
    out: Path = Path("videos")
    """Where the videos and the JSON go."""
    video: bool = True
    """Film the games; --no-video plays faster."""
    highlight: str = ""
    """Words for something in the game, "the red ghost": the video shows the mask that --finder finds for them."""
    segmenter: Path | None = None
    """A checkpoint that was taught masks (`pretrain.referring`); by default the one that the repository ships."""
    render: Literal["none", "human"] = "none"
    """human: show the game in a window while it is played."""

    def __post_init__(self) -> None:
        for name in ("episodes", "max_frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        kind, path = parse_agent_id(self.agent)
        if self.checkpoint and (kind != "vlm" or path):
            raise UserError(f"--checkpoint is for --agent vlm, got --agent {self.agent}")
        if self.highlight.strip() and not self.video:
            raise UserError("--highlight is drawn in the video, which --no-video leaves out")
        if self.segmenter and not self.highlight.strip():
            raise UserError('--finder goes with --highlight "what to find"')

    @property
    def spec(self) -> str:
        """The agent's word with the checkpoint in it."""
        return f"vlm:{self.checkpoint}" if self.checkpoint else self.agent


class EpisodeRecorder:
    """Watches the turns of each game in order: films it, shows it, keeps its row."""

    def __init__(self, args: Args, envs: GameEnvs, agent: Agent):
        self.args, self.envs, self.agent = args, envs, agent
        self.games: list[dict[str, Any]] = []
        self._video: VideoWriter | None = None
        self._highlight = _highlight(args) if args.highlight.strip() else None
        self._window = _window(envs) if args.render == "human" else None
        self._started = time.monotonic()

    def step(self, turn: Transition) -> None:
        """Take in a turn; a game's first opens its video, its last closes it."""
        if turn.step == 0:
            self._start(turn)
        if self._video:
            found = self._highlight
            self._video.step(turn, OverlayFrame(found.words, found.find(turn)) if found else None)
        if self._window:
            self._window.show(turn.frame)
        row = self.games[-1]
        row["score"], row["decisions"] = turn.score, turn.step + 1
        row["invalid"] += int(turn.invalid)
        row["seconds"] = time.monotonic() - self._started
        if turn.ended:
            row["finished"] = True
            self.close()

    def _start(self, turn: Transition) -> None:
        game = self.envs.game
        row: dict[str, Any] = {"seed": turn.seed, "score": 0.0, "decisions": 0, "invalid": 0, "finished": False}
        self._started = time.monotonic()
        if self.args.video:
            file = self.args.out / f"{game.name}-{self.agent.name}-seed{self.args.seed}-game{turn.game_index}.mp4"
            skip = self.envs.protocol.frame_skip
            self._video = VideoWriter(file, game.title, self.agent.name, self.envs.action_names, skip)
            row["video"] = str(file)
        self.games.append(row)

    def close(self) -> None:
        """Finish the video at hand, so that what was filmed plays."""
        if self._video:
            video, self._video = self._video, None
            video.close()

    def discard(self) -> None:
        """After a mistake: leave no half-written video."""
        if self._video:
            self._video.discard()


def _window(envs: GameEnvs) -> Any:
    from agents.human_agent import Window

    return Window(envs.game)


def _highlight(args: Args) -> "MaskOverlay":
    from agents.mask_overlay import MaskOverlay

    return MaskOverlay.load(args.segmenter or RELEASED_SEGMENTER, args.highlight)


def check_out(out: Path, video: bool) -> None:
    """Refuse an output folder that cannot be written, before anything is played."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from error
    free = shutil.disk_usage(out).free
    if video and free < LEAST_FREE_BYTES:
        raise UserError(f"--out {out} has {free // 2**20} MiB left; filming asks for {LEAST_FREE_BYTES // 2**20}")


def watch(args: Args, envs: GameEnvs, agent: Agent, recording: EpisodeRecorder) -> bool:
    """Play and record; return whether the player was interrupted by Ctrl-C."""
    seeds = episode_seeds(args.seed, args.episodes)
    bar = tqdm(desc=f"{agent.name} plays {envs.game.title}", unit=" decisions")
    cap = args.max_frames and -(-args.max_frames // envs.protocol.frame_skip)
    try:
        for seed in seeds:  # one game after the other, so that a cap or Ctrl-C ends one game
            for turn in play_games(agent, envs, [seed]):
                recording.step(turn)
                bar.update()
                bar.set_postfix(game=f"{len(recording.games)}/{args.episodes}", score=f"{turn.score:g}", refresh=False)
                if cap and turn.step + 1 >= cap and not turn.ended:
                    recording.close()
                    break
    except KeyboardInterrupt:
        recording.close()
        return True
    except BaseException:
        recording.discard()
        raise
    finally:
        bar.close()
    return False


def result_of(args: Args, envs: GameEnvs, recording: EpisodeRecorder, interrupted: bool) -> dict[str, Any]:
    """Return the result in the house's form; scores of games cut short are kept apart from whole ones."""
    games = recording.games
    decisions = sum(row["decisions"] for row in games)
    seconds = sum(row["seconds"] for row in games)
    result = new_result("play", envs.protocol.to_dict(), [args.seed])
    result["seconds"], result["interrupted"] = round(seconds, 2), interrupted
    row: dict[str, Any] = {
        "agent": args.spec,
        "game": envs.game.name,
        "seed": args.seed,
        "decode": args.decode,
        "scores": [row["score"] for row in games if row["finished"]],
        "scores_of_cut_games": [row["score"] for row in games if not row["finished"]],
        "invalid": sum(row["invalid"] for row in games) / max(decisions, 1),
        "decisions": decisions,
        "decisions_per_second": round(decisions / max(seconds, 1e-9), 1),
        "videos": [row["video"] for row in games if "video" in row],
    }
    if parse_agent_id(args.spec)[0] == "vlm":
        from vlm.checkpoint import content_hash

        row["checkpoint"] = content_hash(checkpoint_path(args.spec))
        row["temperature"] = getattr(recording.agent, "temperature", None)
        row["engine"] = args.engine
    result["rows"] = [row]
    return result


def score_table(game: Game, result: dict[str, Any]) -> str:
    """Return the agent's scores beside what is known of the game, as text."""
    row = result["rows"][0]
    scores, cut = row["scores"], row["scores_of_cut_games"]
    lines = [f"{game.title}, {result['protocol']['name']}"]
    if scores:
        spread = f" ({min(scores):,.0f} to {max(scores):,.0f})" if len(scores) > 1 else ""
        games = f"{len(scores)} game{'s' * (len(scores) > 1)}"
        lines.append(f"  {row['agent']:<24}{np.mean(scores):>10,.0f}  {games}{spread}")
    if cut:
        lines.append(f"  {row['agent']:<24}{np.mean(cut):>10,.0f}  {len(cut)} cut short: no score")
    lines += [f"  {name:<24}{score:>10,.0f}  {note}" for name, score, note in _measured(game)]
    lines += [f"  {r.agent:<24}{r.score:>10,.0f}  {r.protocol}; {r.source}" for r in all_references(game)]
    try:
        reference(game, "human")
    except MissingReferenceError as missing:
        lines.append(f"  human                          -  {missing}")
    speed = f"{row['decisions_per_second']} decisions a second"
    lines.append(f"  {row['decisions']} decisions, {speed}, {row['invalid']:.1%} unparsable")
    return "\n".join(lines)


def _measured(game: Game) -> list[tuple[str, float, str]]:
    """Return what the committed results hold on this game: (agent and temperature, mean, note)."""
    if not SCORES.is_file():
        return []
    found: dict[str, list[float]] = {}
    for row in read_result(SCORES)["rows"]:
        if row["game"] == game.name:
            how = "" if row.get("temperature") is None else f" at {row['temperature']:g}"
            found.setdefault(row["agent"] + how, []).extend(row["scores"])
    notes = dict.fromkeys(EXPERTS, "; an expert with access to the simulator")
    return [
        (f"{name} (committed)", float(np.mean(scores)), f"{len(scores)} games{notes.get(name, '')}")
        for name, scores in found.items()
    ]


def play(args: Args) -> int:
    """Play as asked; return the exit code."""
    game, protocol = find_game(args.game), find_protocol(args.protocol)
    check_out(args.out, args.video)
    episode_seeds(args.seed, args.episodes)
    with make_envs(game, 1, protocol, searchable=needs_emulator(args.agent)) as envs:
        agent = make_agent(args.spec, envs, args.decode, args.temperature, args.engine)
        taught = getattr(agent, "training", {}).get("games")
        if taught is not None and game.name not in taught:
            print(f"note: this model was not trained on {game.title}, only on {', '.join(taught)}")
        recording = EpisodeRecorder(args, envs, agent)
        interrupted = watch(args, envs, agent, recording)
    if not recording.games:
        return 130
    result = result_of(args, envs, recording, interrupted)
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
