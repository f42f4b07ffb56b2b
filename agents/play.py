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

import math
import re
import shutil
import sys
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
from agents.model_limits import ModelLimits
from agents.registry import (
    EXPERTS,
    agent_files,
    agent_settings,
    checkpoint_path,
    make_agent,
    needs_emulator,
    parse_agent_id,
    result_protocol,
)
from agents.rollout import Transition, play_games
from agents.score_rows import group_rows
from agents.seen_frame import FrameReader
from agents.video import MaskOverlay, Panel, VideoWriter, draw_transition, require_ffmpeg
from common.command import command, require_at_least, run
from common.errors import UserError
from common.output_lock import output_lock
from common.outputs import require_output_files, require_writable
from common.results import RESULTS, new_result, read_result, write_result
from common.run_arguments import changed_arguments, to_json
from envs.atari import GameEnvs, make_envs
from envs.games import Game, find_game
from envs.protocol import episode_seeds, find_protocol
from envs.reference_scores import MissingReferenceError, all_references, reference
from vlm.released_checkpoints import RELEASED_POLICY

COMMITTED_SCORES = RESULTS / "shipped.json"
MIN_FREE_BYTES = 64 * 2**20
MAX_WORDS = 40  # letters of a highlighted expression in the name of a film


@dataclass
class Args:
    """Play whole games with an agent, film and score them."""

    game: str = "Carnival"
    """The game, in any reasonable spelling: Carnival, "Ms. Pac-Man", ALE/Pong-v5."""
    agent: str = "vlm"
    """vlm, vlm:DIR, random, sb3:PATH, api:MODEL, human, planner or an expert of the game (docs/experts.md)."""
    checkpoint: Path | None = None
    """The VLM that plays; by default the released policy."""
    episodes: int = 1
    """Number of whole games."""
    seed: int = 0
    """Seed of the games, at least 0; 1000 to 1999 are for published scores."""
    protocol: str = "machado2018"
    """The evaluation protocol: machado2018 (sticky actions) or mnih2015 (no-op starts)."""
    decode: Literal["scores", "generate"] = "scores"
    """scores: the exact probabilities of the legal actions; generate: free text, parsed."""
    temperature: float | None = None
    """Sampling temperature; 0 is greedy; by default the one chosen for the checkpoint."""
    engine: Literal["auto", "torch", "openvino"] = "auto"
    """What computes a VLM's probabilities: torch (float32), openvino (fast on a CPU), auto (openvino on a CPU)."""
    limits: Annotated[ModelLimits, tyro.conf.arg(name="")] = ModelLimits()
    """How much a model that plays reads and writes."""
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
        self.api.check_agents(parsed[:1], self.limits)
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
    def shown(self) -> str:
        """What the films show beside the game, as the end of their names: -see, -highlight-the-red-ghost."""
        words = re.sub("[^a-z0-9]+", "-", self.highlight.lower()).strip("-")[:MAX_WORDS]
        return ("-see" if self.see else "") + (f"-highlight-{words}" if self.highlight.strip() else "")

    @property
    def agent_id(self) -> str:
        """The agent's id, with the checkpoint."""
        return f"vlm:{self.checkpoint}" if self.checkpoint else self.agent


class EpisodeRecorder:
    """Films, shows and scores one episode after the other; keeps a row for each."""

    def __init__(self, args: Args, envs: GameEnvs, agent: Agent, settings: dict[str, Any]):
        self.args, self.envs, self.agent, self.settings = args, envs, agent, settings
        self.rows: list[dict[str, Any]] = []
        self.stopped_by: KeyboardInterrupt | ApiError | None = None
        self.interrupted = True  # until all episodes have ended
        self._name = file_stem(envs.game.name, agent.name, args.seed) + args.shown
        self._video: VideoWriter | None = None
        self._overlay: MaskOverlay | None = None
        if args.highlight.strip():
            from vlm.segmentation.referring_segmenter import load_segmenter

            self._overlay = MaskOverlay(load_segmenter(args.segmenter or RELEASED_POLICY), args.highlight)
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

    @property
    def result_file(self) -> Path:
        """The file of the result."""
        return self.args.out / f"{self._name}.json"

    def video_file(self, number: int) -> Path:
        """Return the file of a game's video."""
        return self.args.out / f"{self._name}-game{number}.mp4"

    def _start_episode(self, seed: int) -> None:
        row: dict[str, Any] = {"seed": seed, "score": 0.0, "steps": 0, "invalid": 0, "seconds": 0.0, "finished": False}
        self._start_time = time.monotonic()
        if self.args.video:
            file = self.video_file(len(self.rows))
            self._video = VideoWriter(file, self._panel)
            row["video"] = str(file)
        self.rows.append(row)

    def close(self) -> None:
        """Write the result so far, and then finish the current video, so that the recorded part plays."""
        if self.rows:
            write_result(self.result_file, build_result(self.args, self.envs, self))
        if self._video:
            video, self._video = self._video, None
            video.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, error: BaseException | None, *_: object) -> bool:
        """Finish the video, or delete it after an error; Ctrl-C, SIGTERM and an endpoint's failure end the play."""
        self.stopped_by = error if isinstance(error, KeyboardInterrupt | ApiError) else None
        self.interrupted = self.stopped_by is not None
        if error is None or self.interrupted:
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


def require_space(args: Args) -> None:
    """Refuse a directory that cannot be written or has no space for a video."""
    free = shutil.disk_usage(require_writable(args.out)).free
    if args.video and free < MIN_FREE_BYTES:
        raise UserError(f"--out {args.out} has {free // 2**20} MiB left; a video needs {MIN_FREE_BYTES // 2**20}")


def require_own_outputs(args: Args, recorder: EpisodeRecorder, result: dict[str, Any]) -> None:
    """Refuse to write over the result or the films of another play, and over a file that is read."""
    films = [recorder.video_file(number) for number in range(args.episodes)] if args.video else []
    read, file = [path for path in agent_files([args.agent]) if path.is_file()], recorder.result_file
    require_output_files([file, *films], read, own=file)
    if not file.exists():
        return
    stored = read_result(file)
    before, now = stored.get("arguments", {}), result["arguments"]
    changed = changed_arguments(before, now, ignore=("episodes", "max_frames"))
    if not changed:  # more games, or longer ones, begin as those before
        changed = [name for name in ("episodes", "max_frames") if (now[name] or math.inf) < (before[name] or math.inf)]
    if not changed and stored["rows"] and stored["rows"][0].get("checkpoint") != result["rows"][0].get("checkpoint"):
        changed = ["content of the checkpoint"]
    if changed:
        raise UserError(f"{file} holds a play with another {', '.join(changed)}; choose another --out")


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


def played_arguments(args: Args) -> dict[str, Any]:
    """Return the arguments that decide what is played and shown, as JSON values; an endpoint's where one plays."""
    arguments = to_json(args)
    arguments |= arguments.pop("limits") | (args.api.played() if parse_agent_id(args.agent)[0] == "api" else {})
    return {name: arguments[name] for name in arguments if name not in ("out", "render", "video", "api")}


def build_result(args: Args, envs: GameEnvs, recorder: EpisodeRecorder) -> dict[str, Any]:
    """Return the result (`common.results`) with the `agent_settings`; the scores of unfinished games are kept apart."""
    rows = recorder.rows
    steps, seconds = sum(row["steps"] for row in rows), sum(row["seconds"] for row in rows)
    result = new_result("play", result_protocol(envs.protocol, [args.agent], args.api), [args.seed])
    result["seconds"], result["interrupted"] = round(seconds, 2), recorder.interrupted
    result["arguments"] = played_arguments(args)
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
    settings = recorder.settings
    found |= settings | ({"temperature": getattr(recorder.agent, "temperature", None)} if settings else {})
    found |= getattr(recorder.agent, "usage", dict)()
    found |= {"failure": str(recorder.stopped_by)} if isinstance(recorder.stopped_by, ApiError) else {}
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

    def label(row: dict[str, Any]) -> str:
        return row["agent"] + ("" if row.get("temperature") is None else f" at {row['temperature']:g}")

    rows = read_result(COMMITTED_SCORES)["rows"] if COMMITTED_SCORES.is_file() else []
    lines = []
    for (_, agent), own in group_rows([row for row in rows if row["game"] == game.name], label).items():
        scores = np.concatenate([row["scores"] for row in own])
        note = "; an expert with access to the simulator" if agent in EXPERTS else ""
        lines.append((f"{agent} (committed)", float(np.mean(scores)), f"{len(scores)} games{note}"))
    return lines


def play(args: Args) -> str:
    """Play, record and return a report."""
    game, protocol = find_game(args.game), find_protocol(args.protocol)
    require_space(args)
    if args.video:
        require_ffmpeg()
    episode_seeds(args.seed, args.episodes)  # refuses a seed out of range before the model loads
    # hashes the weights before anything is played
    settings = agent_settings(
        args.agent_id, args.decode, args.temperature, args.engine, limits=args.limits, api=args.api
    )
    with make_envs(game, 1, protocol, searchable=needs_emulator(args.agent)) as envs:
        agent = make_agent(args.agent_id, envs, args.decode, args.temperature, args.engine, args.limits, args.api)
        trained_games = getattr(agent, "training", {}).get("games")
        if trained_games is not None and game.name not in trained_games:
            print(f"note: this model was not trained on {game.title}, only on {', '.join(trained_games)}")
        recorder = EpisodeRecorder(args, envs, agent, settings)
        with output_lock(recorder.result_file):
            require_own_outputs(args, recorder, build_result(args, envs, recorder))
            run_episodes(args, envs, agent, recorder)
            if not recorder.rows:
                raise recorder.stopped_by or KeyboardInterrupt
            result = build_result(args, envs, recorder)
            write_result(recorder.result_file, result)
    videos = [f"video: {video}" for video in result["rows"][0]["videos"]]
    report = "\n".join([format_scores(game, result), *videos, f"result: {recorder.result_file}"])
    if recorder.stopped_by:
        print(report)
        raise recorder.stopped_by
    return report


main = command(Args, play, __doc__, "{}", output=lambda _: None)  # the lock is the result file's

if __name__ == "__main__":
    sys.exit(run(main))
