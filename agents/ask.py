"""Question a model about what it sees, on a small page in your browser.

    python -m agents.ask --game Carnival
    python -m agents.ask --checkpoint vlm/weights/reader --game MsPacman
    python -m agents.ask --image photo.png
    python -m agents.ask --game MsPacman --html asked.html

The game plays. Click a place: the page shows the color that the model answers, beside the true one. Type words: it
shows the mask, if the checkpoint segments. Bars are the probabilities of the actions, beside the one that is played;
"see" shows the answers for all cells. The page is for this computer alone; Ctrl-C ends it. With `--html` the answers
about some frames are written into one file, which opens without Python.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agents.agent import Agent
from agents.ask_server import AskServer, bake_page
from agents.ask_session import AskSession
from agents.frame_questions import QuestionedModel
from agents.registry import make_agent, needs_emulator, parse_agent_id
from agents.vlm_agent import VlmAgent
from common.command import command, require_at_least, run
from common.errors import UserError
from common.files import write_text_atomically
from common.outputs import require_output_files
from envs.atari import GameEnvs, make_envs
from envs.games import find_game
from envs.protocol import MACHADO2018, episode_seeds
from vlm import checkpoint
from vlm.released_checkpoints import RELEASED_POLICY


@dataclass(frozen=True)
class Args:
    """Question a model on a page."""

    checkpoint: Path = RELEASED_POLICY
    """The model; by default the released policy."""
    game: str | None = None
    """The game, in any reasonable spelling; without one, --image."""
    image: Path | None = None
    """A PNG or JPEG file to ask about first, or in place of a game."""
    agent: str | None = None
    """Who plays, as in `agents.play`; by default the model if it was trained to play, else random."""
    seed: int = 0
    """Seed of the game."""
    port: int = 8123
    """Port of the page on this computer; 0 takes any free one."""
    html: Path | None = None
    """Write one file with the answers about some frames in place of serving a page."""
    frames: int = 16
    """Frames in the file."""
    frame_every: int = 8
    """Steps of the game from one of them to the next."""
    expression: tuple[str, ...] = ()
    """Words whose masks are written into the file."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "frames", "frame_every")
        require_at_least(self, 0, "port")
        if self.game is None and self.image is None:
            raise UserError("expected --game or --image, got neither")
        if self.agent is not None:
            if self.game is None:
                raise UserError(f"--agent {self.agent} needs a --game to play")
            if parse_agent_id(self.agent)[0] == "human":
                raise UserError("expected an agent that plays by itself, got --agent human")
        if self.expression and not self.html:
            raise UserError("--expression is for --html; on the page, words are typed")
        episode_seeds(self.seed, 1)


@contextmanager
def open_session(args: Args) -> Iterator[AskSession]:
    """Yield the session of the arguments: a game, a picture, or a picture before a game."""
    game = find_game(args.game) if args.game else None
    model = QuestionedModel.load(args.checkpoint)
    if args.expression and not model.segmenter:
        raise UserError(f"--expression: expected a checkpoint trained on masks, got {args.checkpoint}")
    if game is None:
        yield _with_picture(AskSession(model, args.checkpoint.name, None), args.image)
        return
    with make_envs(game, 1, MACHADO2018, searchable=needs_emulator(args.agent or "vlm")) as envs:
        player = _player(args, model, envs)
        yield _with_picture(AskSession(model, args.checkpoint.name, (envs, player, args.seed)), args.image)


def _player(args: Args, model: QuestionedModel, envs: GameEnvs) -> Agent:
    """Return who plays: a named agent, the model itself at the temperature chosen for it, or a random one."""
    if args.agent not in (None, "vlm") or not model.games:
        return make_agent(args.agent or "random", envs)
    play = checkpoint.read_training(args.checkpoint).get("play", {})
    return VlmAgent(model.vlm, envs.game.title, envs.action_names, temperature=float(play.get("temperature", 0.0)))


def _with_picture(session: AskSession, image: Path | None) -> AskSession:
    if image:
        if not image.is_file():
            raise UserError(f"expected a PNG or JPEG file, got {image}, which is not a file")
        session.show_picture(image.read_bytes(), image.name)
    return session


def serve(session: AskSession, port: int) -> str:
    """Serve the page until Ctrl-C."""
    with AskServer(session, port) as server:
        print(f"open {server.url} in a browser; Ctrl-C ends it", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return "ended"
    return "ended"


def ask(args: Args) -> str:
    """Serve the page, or write it as one file; return what to print."""
    if args.html:
        require_output_files([args.html], [args.image] if args.image else [], flag="--html")
    with open_session(args) as session:
        if args.html is None:
            return serve(session, args.port)
        write_text_atomically(args.html, bake_page(session, args.frames, args.frame_every, args.expression))
    return f"the page is {args.html}"


main = command(Args, ask, __doc__, "{}")

if __name__ == "__main__":
    sys.exit(run(main))
