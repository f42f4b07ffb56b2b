"""Games by name: one game under all its spellings, and its actions as words.

`Carnival`, `carnival`, `"Ms. Pac-Man"`, `MsPacman`, `ms_pacman` and `ALE/MsPacman-v5` are each one game. The list is
what ale-py's wheel carries, less the games that one player cannot play.
"""

import difflib
import re
from dataclasses import dataclass
from functools import cache

from ale_py import ALEInterface, LoggerMode, roms

from common.errors import UserError

MULTI_PLAYER_ONLY = ("combat", "joust", "maze_craze", "warlords")

TITLES = {  # where the ROM's name, written out, is not the game's own
    "ms_pacman": "Ms. Pac-Man",
    "pacman": "Pac-Man",
    "qbert": "Q*bert",
    "up_n_down": "Up 'n Down",
    "hero": "H.E.R.O.",
    "et": "E.T.",
    "jamesbond": "James Bond",
    "choppercommand": "Chopper Command",
    "private_eye": "Private Eye",
    "wizard_of_wor": "Wizard of Wor",
    "montezuma_revenge": "Montezuma's Revenge",
    "yars_revenge": "Yars' Revenge",
    "tic_tac_toe_3d": "Tic-Tac-Toe 3D",
    "video_checkers": "Video Checkers",
}

_WORDS = ("UP", "DOWN", "LEFT", "RIGHT", "FIRE", "NOOP")


class UnknownGameError(UserError):
    """No game of that name."""


class MultiPlayerGameError(UserError):
    """A game that one player cannot play."""


@dataclass(frozen=True)
class Game:
    """One game: `name` as in `ALE/MsPacman-v5`, `rom` as ale-py's file, `title` as on the box."""

    name: str
    rom: str
    title: str


def _key(spelling: str) -> str:
    """Reduce a spelling to what all spellings of a game share."""
    bare = re.sub(r"^ALE/", "", spelling.strip(), flags=re.IGNORECASE)
    bare = re.sub(r"(NoFrameskip|Deterministic)?-v\d+$", "", bare, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]", "", bare.lower())


def _game(rom: str) -> Game:
    name = "".join(part[:1].upper() + part[1:] for part in rom.split("_")).replace("3d", "3D")
    return Game(name, rom, TITLES.get(rom, rom.replace("_", " ").title()))


@cache
def list_games() -> tuple[Game, ...]:
    """Return every game that one player can play, sorted by name."""
    roms_found = (rom for rom in roms.get_all_rom_ids() if rom not in MULTI_PLAYER_ONLY)
    return tuple(sorted((_game(rom) for rom in roms_found), key=lambda game: game.name))


@cache
def _by_key() -> dict[str, Game]:
    table = {}
    for game in list_games():
        table[_key(game.name)] = table[_key(game.title)] = table[_key(game.rom)] = game
    return table


def find_game(spelling: str) -> Game:
    """Return the game that a spelling means.

    Raises:
        MultiPlayerGameError: one player cannot play it.
        UnknownGameError: there is no such game; the message names the nearest.
    """
    key = _key(spelling)
    if key in {_key(rom) for rom in MULTI_PLAYER_ONLY}:
        raise MultiPlayerGameError(f"{spelling!r} needs two players; one agent cannot play it")
    table = _by_key()
    if key in table:
        return table[key]
    near = dict.fromkeys(table[k].name for k in difflib.get_close_matches(key, table, n=6, cutoff=0.4))
    hint = ", ".join(list(near)[:3]) or "Carnival, MsPacman, Pong"
    raise UnknownGameError(f"expected a game of the Arcade Learning Environment, got {spelling!r}; nearest: {hint}")


def action_words(ale_name: str) -> str:
    """Return ALE's action name as words: 'UPRIGHTFIRE' is 'up right fire'."""
    return " ".join(word.lower() for word in re.findall("|".join(_WORDS), ale_name))


def load_rom(emulator: ALEInterface, rom: str) -> None:
    """Put a ROM of ale-py's wheel into an emulator, which takes its settings and seed up with it."""
    path = roms.get_rom_path(rom)
    if path is None:
        raise UnknownGameError(f"ale-py's wheel holds no ROM {rom!r}")
    emulator.loadROM(path)


def open_emulator(game: Game) -> ALEInterface:
    """Return ale-py's emulator with the game's ROM in it, frame by frame and without stickiness."""
    ALEInterface.setLoggerMode(LoggerMode.Error)
    emulator = ALEInterface()
    emulator.setFloat("repeat_action_probability", 0.0)
    load_rom(emulator, game.rom)
    return emulator


@cache
def action_names(game: Game, full_action_space: bool = False) -> tuple[str, ...]:
    """Return the legal actions as words; index i is the environments' action i."""
    emulator = open_emulator(game)
    legal = emulator.getLegalActionSet() if full_action_space else emulator.getMinimalActionSet()
    return tuple(action_words(action.name) for action in legal)


@cache
def screen_size(game: Game) -> tuple[int, int]:
    """Return (height, width) of the native screen in pixels."""
    height, width = open_emulator(game).getScreenDims()
    return int(height), int(width)
