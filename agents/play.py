"""Play whole games, film and score them.

    python -m agents.play --game Carnival                           the released policy, one game, on video
    python -m agents.play --game "Ms. Pac-Man" --episodes 3 --seed 7
    python -m agents.play --game Pong --agent random --no-video
    python -m agents.play --game Carnival --agent planner --max-frames 2000
    python -m agents.play --game MsPacman --checkpoint runs/clone/best --decode generate
    python -m agents.play --game MsPacman --highlight "the red ghost"
    python -m agents.play --game Carnival --see
    python -m agents.play --game Carnival --agent api:llava --base-url http://127.0.0.1:11434/v1

Each game becomes an mp4 at the game's own speed: frames, the agent's text action, the scores of all legal actions as
bars, the running score; with `--see` also the color that the model answers for every cell of a grid, above the truth.
Scores are printed beside random, human and published ones, and written as JSON. The same seed
gives the same game and the same video.
"""

import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import tyro
from tqdm import tqdm

from agents.agent import Agent
from agents.api_config import ApiConfig, ApiError
from agents.human_agent import Window
from agents.registry import (
    EXPERTS,
    agent_settings,
    checkpoint_path,
    make_agent,
    needs_emulator,
    parse_agent_id,
    result_protocol,
)
from agents.rollout import Transition, play_games
from agents.seen_frame import FrameReader
from agents.video import MaskOverlay, Panel, VideoWriter, draw_transition
from common.command import command, require_at_least, run
from common.errors import UserError
from common.results import RESULTS, new_result, read_result, write_result
from envs.atari import GameEnvs, make_envs
from envs.games import Game, find_game
from envs.protocol import episode_seeds, find_protocol
from envs.reference_scores import MissingReferenceError, all_references, reference
from vlm.released_checkpoints import RELEASED_SEGMENTER

COMMITTED_SCORES = RESULTS / "shipped.json"
MIN_FREE_BYTES = 64 * 2**20


@dataclass
class Args:
    """Play whole games with an agent, film and score them."""

    game: str = "Carnival"
    """The game, in any reasonable spelling: Carnival, "Ms. Pac-Man", ALE/Pong-v5."""
    agent: str = "vlm"
    """vlm, vlm:DIR, random, sb3:PATH, api:MODEL, human, planner, mspacman-expert, carnival-expert or paddle-expert."""
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
    see: bool = False
    """Show what the model answers for every cell of the grid it was trained on, and the truth."""
    see_every: int = 1
    """Ask about every N-th frame only, where a frame costs too much."""
    see_checkpoint: Path | None = None
    """The checkpoint trained on pixel values that is asked; by default the model that plays."""
    render: Literal["none", "human"] = "none"
    """human: show the game in a window."""
    api: Annotated[ApiConfig, tyro.conf.arg(name="")] = ApiConfig()
    """The endpoint of --agent api:MODEL."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "episodes", "max_frames", "see_every")
        parsed = parse_agent_id(self.agent)
        self.api.check_agents(parsed[:1])
        if self.checkpoint and parsed != ("vlm", None):
            raise UserError(f"--checkpoint is for --agent vlm, got --agent {self.agent}")
        if self.highlight.strip() and not self.video:
            raise UserError("--highlight is drawn in the video, which --no-video leaves out")
        if self.segmenter and not self.highlight.strip():
            raise UserError('--segmenter needs --highlight "an expression"')
        self._check_see()

    def _check_see(self) -> None:
        if not self.see and (self.see_checkpoint or self.see_every > 1):
            raise UserError("--see-every and --see-checkpoint need --see")
        if self.see and not self.video and self.render == "none":
            raise UserError("--see is drawn in the video, which --no-video leaves out, or with --render human")
        if self.see and not self.see_checkpoint and parse_agent_id(self.agent)[0] != "vlm":
            raise UserError(f"--see asks the model that plays; expected --see-checkpoint DIR with --agent {self.agent}")

    @property
    def agent_id(self) -> str:
        """The agent's id, with the checkpoint."""
        return f"vlm:{self.checkpoint}" if self.checkpoint else self.agent


class EpisodeRecorder:
    """Films, shows and scores one episode after the other; keeps a row for each."""

    def __init__(self, args: Args, envs: GameEnvs, agent: Agent):
        self.args, self.envs, self.agent = args, envs, agent
        self.rows: list[dict[str, Any]] = []
        self.failure: ApiError | None = None
        self._video: VideoWriter | None = None
        self._overlay: MaskOverlay | None = None
        if args.highlight.strip():
            from vlm.segmentation.referring_segmenter import load_segmenter

            self._overlay = MaskOverlay(load_segmenter(args.segmenter or RELEASED_SEGMENTER), args.highlight)
        self.reader = open_reader(args, agent) if args.see else None
        self._panel = Panel(envs.game.title, agent.name, envs.action_names, envs.protocol.frame_skip)
        self._window = Window(envs.game) if args.render == "human" else None

    def step(self, transition: Transition) -> None:
        """Record a transition; an episode's first one opens its video."""
        if transition.step == 0:
            self._start_episode(transition.seed)
        overlay = self._overlay.segment(transition) if self._overlay else None
        seen = self.reader.read(transition) if self.reader else None
        if self._video:
            self._video.step(transition, overlay, seen)
        if self._window and seen:
            self._window.show(draw_transition(transition, self._panel, overlay, seen), scale=1)
        elif self._window:
            self._window.show(transition.frame)
        row = self.rows[-1]
        row["score"], row["steps"] = transition.score, transition.step + 1
        row["invalid"] += int(transition.invalid)
        row["seconds"] = time.monotonic() - self._start_time
        row["finished"] = transition.ended

    def _start_episode(self, seed: int) -> None:
        game, agent = self.envs.game, self.agent.name
        row: dict[str, Any] = {"seed": seed, "score": 0.0, "steps": 0, "invalid": 0, "seconds": 0.0, "finished": False}
        self._start_time = time.monotonic()
        if self.args.video:
            file = self.args.out / f"{file_stem(game.name, agent, self.args.seed)}-game{len(self.rows)}.mp4"
            self._video = VideoWriter(file, self._panel)
            row["video"] = str(file)
        self.rows.append(row)

    def close(self) -> None:
        """Finish the current video, so that the recorded part plays."""
        if self._video:
            video, self._video = self._video, None
            video.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        """Finish the video, or delete it after an error; Ctrl-C and an endpoint's failure are noted."""
        self.failure = error if isinstance(error, ApiError) else None
        self.interrupted = kind is KeyboardInterrupt or self.failure is not None
        if kind is None or self.interrupted:
            self.close()
        elif self._video:
            self._video.discard()
        return self.interrupted


def open_reader(args: Args, agent: Agent) -> FrameReader:
    """Return what asks a model about the frames: `see_checkpoint`, or the VLM that plays.

    `UserError` if it was not trained on pixel values.
    """
    from agents.frame_questions import QuestionedModel
    from pretrain.pixel_training import PixelTraining

    directory = args.see_checkpoint or checkpoint_path(args.agent_id)
    PixelTraining.of_checkpoint(directory)
    playing: Any = None if args.see_checkpoint else agent
    model = QuestionedModel(playing.vlm, playing.training) if playing else QuestionedModel.load(directory)
    return FrameReader(model, args.see_every)


def file_stem(game: str, agent: str, seed: int) -> str:
    """Return the name of a play's files without their ending: an agent's name may hold slashes."""
    return f"{game}-{re.sub(r'[^A-Za-z0-9_.]+', '-', agent)}-seed{seed}"


def require_writable(out: Path, video: bool) -> None:
    """Refuse a directory that cannot be written, before anything is played."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from error
    free = shutil.disk_usage(out).free
    if video and free < MIN_FREE_BYTES:
        raise UserError(f"--out {out} has {free // 2**20} MiB left; a video needs {MIN_FREE_BYTES // 2**20}")


def run_episodes(args: Args, envs: GameEnvs, agent: Agent, recorder: EpisodeRecorder) -> None:
    """Play and record; Ctrl-C ends the play."""
    max_steps = args.max_frames and -(-args.max_frames // envs.protocol.frame_skip)
    with recorder, tqdm(desc=f"{agent.name} plays {envs.game.title}", unit=" steps") as bar:
        for number, seed in enumerate(episode_seeds(args.seed, args.episodes), start=1):  # max_frames ends one alone
            for transition in play_games(agent, envs, [seed]):
                recorder.step(transition)
                bar.update()
                bar.set_postfix(game=f"{number}/{args.episodes}", score=f"{transition.score:g}", refresh=False)
                if transition.step + 1 == max_steps:
                    break
            recorder.close()


def build_result(args: Args, envs: GameEnvs, recorder: EpisodeRecorder) -> dict[str, Any]:
    """Return the result (`common.results`); the scores of unfinished games are kept apart."""
    rows = recorder.rows
    steps, seconds = sum(row["steps"] for row in rows), sum(row["seconds"] for row in rows)
    result = new_result("play", result_protocol(envs.protocol, [args.agent], args.api), [args.seed])
    result["seconds"], result["interrupted"] = round(seconds, 2), recorder.interrupted
    found: dict[str, Any] = {
        "agent": args.agent_id,
        "game": envs.game.name,
        "seed": args.seed,
        "decode": args.decode,
        "scores": [row["score"] for row in rows if row["finished"]],
        "unfinished_scores": [row["score"] for row in rows if not row["finished"]],
        "invalid": sum(row["invalid"] for row in rows) / max(steps, 1),
        "steps": steps,
        "steps_per_second": round(steps / max(seconds, 1e-9), 1),
        "videos": [row["video"] for row in rows if "video" in row],
    }
    found |= recorder.reader.summary() if recorder.reader and steps else {}
    temperature = getattr(recorder.agent, "temperature", None)
    found |= agent_settings(args.agent_id, args.decode, temperature, args.engine, args.api)
    found |= getattr(recorder.agent, "usage", dict)()
    found |= {"failure": str(recorder.failure)} if recorder.failure else {}
    return result | {"rows": [found]}


def format_scores(game: Game, result: dict[str, Any]) -> str:
    """Return a text table of the agent's scores beside the known ones of the game."""
    row = result["rows"][0]
    scores, unfinished = row["scores"], row["unfinished_scores"]
    table: list[tuple[str, float, str]] = []  # agent, score, note
    if scores:
        games = f"{len(scores)} games ({min(scores):,.0f} to {max(scores):,.0f})" if len(scores) > 1 else "1 game"
        table.append((row["agent"], float(np.mean(scores)), games))
    if unfinished:
        table.append((row["agent"], float(np.mean(unfinished)), f"{len(unfinished)} unfinished: no score"))
    table += _committed_scores(game)
    table += [(known.agent, known.score, f"{known.protocol}; {known.source}") for known in all_references(game)]
    lines = [f"{game.title}, {result['protocol']['name']}"]
    lines += [f"  {agent:<24}{score:>10,.0f}  {note}" for agent, score, note in table]
    try:
        reference(game, "human")
    except MissingReferenceError as missing:
        lines.append(f"  human                          -  {missing}")
    lines.append(f"  {row['steps']} steps, {row['steps_per_second']} per second, {row['invalid']:.1%} invalid answers")
    if "see_ms" in row:
        lines[-1] += (
            f"; {row['see_grid']} pixel values: {row['see_ms']:.0f} ms a frame, {row['see_mae']:.1f} of 255 off"
        )
    if "requests" in row:
        cost = "" if row["cost"] is None else f", {row['cost']:g} dollars"
        tokens = f"{row['prompt_tokens']:,} + {row['completion_tokens']:,} tokens"
        lines.append(f"  {row['requests']} requests, {row['cached_answers']} answers from the cache, {tokens}{cost}")
    return "\n".join(lines)


def _committed_scores(game: Game) -> list[tuple[str, float, str]]:
    """Return (agent and temperature, mean score, note) of each agent in the committed results of a game."""
    scores: dict[str, list[float]] = {}
    for row in read_result(COMMITTED_SCORES)["rows"] if COMMITTED_SCORES.is_file() else []:
        if row["game"] == game.name:
            temperature = "" if row.get("temperature") is None else f" at {row['temperature']:g}"
            scores.setdefault(row["agent"] + temperature, []).extend(row["scores"])
    lines = []
    for agent, found in scores.items():
        note = "; an expert with access to the simulator" if agent in EXPERTS else ""
        lines.append((f"{agent} (committed)", float(np.mean(found)), f"{len(found)} games{note}"))
    return lines


def play(args: Args) -> str:
    """Play, record and return a report."""
    game, protocol = find_game(args.game), find_protocol(args.protocol)
    require_writable(args.out, args.video)
    episode_seeds(args.seed, args.episodes)  # refuses a seed out of range before the model loads
    with make_envs(game, 1, protocol, searchable=needs_emulator(args.agent)) as envs:
        agent = make_agent(args.agent_id, envs, args.decode, args.temperature, args.engine, args.api)
        trained_games = getattr(agent, "training", {}).get("games")
        if trained_games is not None and game.name not in trained_games:
            print(f"note: this model was not trained on {game.title}, only on {', '.join(trained_games)}")
        recorder = EpisodeRecorder(args, envs, agent)
        run_episodes(args, envs, agent, recorder)
    if not recorder.rows:
        raise recorder.failure or KeyboardInterrupt
    result = build_result(args, envs, recorder)
    file = args.out / f"{file_stem(game.name, agent.name, args.seed)}.json"
    write_result(file, result)
    videos = [f"video: {video}" for video in result["rows"][0]["videos"]]
    report = "\n".join([format_scores(game, result), *videos, f"result: {file}"])
    if recorder.interrupted:
        print(report)
        raise recorder.failure or KeyboardInterrupt
    return report


main = command(Args, play, __doc__, "{}")

if __name__ == "__main__":
    sys.exit(run(main))
