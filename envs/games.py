"""Games by any spelling, and their actions as words.

`Ms. Pac-Man`, `MsPacman`, `ms_pacman`, `ALE/MsPacman-v5` and `MsPacman-ram-v5` are one game. The games are those of
ale-py's wheel, except the ones that need two players.
"""

import difflib
import re
from dataclasses import dataclass
from functools import cache

from ale_py import ALEInterface, LoggerMode, roms

from common.errors import UserError

MULTI_PLAYER_ONLY = ("combat", "joust", "maze_craze", "warlords")

TITLES = {  # where the title differs from the ROM's name
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


class UnknownGameError(UserError):
    """A name that no game has."""


class MultiPlayerGameError(UserError):
    """A game that needs two players."""


@dataclass(frozen=True)
class Game:
    """One game: `name` as in `ALE/MsPacman-v5`, `rom` as ale-py's file, `title` as printed on the box."""

    name: str
    rom: str
    title: str


def _key(spelling: str) -> str:
    """Return the part that all spellings of a game share."""
    stem = re.sub(r"^([\w.]+:)?(ALE/)?", "", spelling.strip(), flags=re.IGNORECASE)  # gymnasium's module and namespace
    stem = re.sub(r"(-ram)?(NoFrameskip|Deterministic)?(-v\d+)?$", "", stem, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]", "", stem.lower())


def _game(rom: str) -> Game:
    name = "".join(part[:1].upper() + part[1:] for part in rom.split("_")).replace("3d", "3D")
    return Game(name, rom, TITLES.get(rom, rom.replace("_", " ").title()))


@cache
def list_games() -> tuple[Game, ...]:
    """Return every single-player game, sorted by name."""
    roms_found = (rom for rom in roms.get_all_rom_ids() if rom not in MULTI_PLAYER_ONLY)
    return tuple(sorted((_game(rom) for rom in roms_found), key=lambda game: game.name))


@cache
def _by_key() -> dict[str, Game]:
    return {_key(spelling): game for game in list_games() for spelling in (game.name, game.title, game.rom)}


def find_game(spelling: str) -> Game:
    """Return the game that a spelling means; `UnknownGameError` lists the nearest."""
    key, table = _key(spelling), _by_key()
    if key in map(_key, MULTI_PLAYER_ONLY):
        raise MultiPlayerGameError(f"{spelling!r} needs two players; one agent cannot play it")
    if key in table:
        return table[key]
    near = dict.fromkeys(table[match].name for match in difflib.get_close_matches(key, table, n=6, cutoff=0.4))
    hint = ", ".join(list(near)[:3]) or "Carnival, MsPacman, Pong"
    raise UnknownGameError(f"expected a game of the Arcade Learning Environment, got {spelling!r}; nearest: {hint}")


def action_words(ale_name: str) -> str:
    """Return ALE's action name as words: 'UPRIGHTFIRE' is 'up right fire'."""
    return " ".join(re.findall("UP|DOWN|LEFT|RIGHT|FIRE|NOOP", ale_name)).lower()


def load_rom(emulator: ALEInterface, rom: str) -> None:
    """Load a ROM of ale-py's wheel; this also applies the emulator's settings and seed."""
    path = roms.get_rom_path(rom)
    if path is None:
        raise UnknownGameError(f"ale-py's wheel has no ROM {rom!r}")
    emulator.loadROM(path)


def open_emulator(game: Game) -> ALEInterface:
    """Return ale-py's emulator of a game, without frame skip and sticky actions."""
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
