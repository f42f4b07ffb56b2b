"""Serve a checkpoint over HTTP, so that other programs play it: in the chat form of OpenAI, and in a small JSON form.

    python -m agents.serve
    python -m agents.serve --checkpoint runs/clone/best --port 8200
    python -m agents.play --game Carnival --agent api:policy --base-url http://127.0.0.1:8124/v1 --history 2

It answers with the action, its distribution, pixel values and masks (`agents.policy_server` lists the requests).
Clients share forward passes. `agents/policy_client.py` is a client that needs numpy alone: copy it. By default the
server answers this computer alone; it asks nobody for a password, so another --host is for a network you trust.
"""

import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agents.policy_server import PolicyServer
from agents.served_policy import ServedPolicy
from common.command import command, require_at_least, run
from envs.games import find_game
from vlm.released_checkpoints import RELEASED_POLICY


@dataclass(frozen=True)
class Args:
    """Serve a checkpoint over HTTP."""

    checkpoint: Path = RELEASED_POLICY
    """The checkpoint; by default the released policy."""
    host: str = "127.0.0.1"
    """The address to listen at; the default serves this computer alone."""
    port: int = 8124
    """The port; 0 takes any free one."""
    game: str | None = None
    """The game of chats that name none, in any reasonable spelling."""
    max_batch: int = 64
    """Requests of several clients that share a forward pass."""
    max_connections: int = 64
    """Clients at one time; more are refused."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "max_batch", "max_connections")
        require_at_least(self, 0, "port")


def serve(args: Args) -> str:
    """Serve until Ctrl-C."""
    game = find_game(args.game) if args.game else None
    policy = ServedPolicy(args.checkpoint, args.max_batch)
    with PolicyServer(policy, args.host, args.port, game, max_connections=args.max_connections) as server:
        print(f"serving {policy.name} at {server.url}; Ctrl-C ends it", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    return "ended"


main = command(Args, serve, __doc__, "{}")

if __name__ == "__main__":
    sys.exit(run(main))
