"""Games are found by any spelling; unknown names are refused with the nearest."""

import pytest

from envs.games import (
    MultiPlayerGameError,
    UnknownGameError,
    action_names,
    action_words,
    find_game,
    list_games,
    screen_size,
)


@pytest.mark.parametrize(
    "spelling",
    [
        "MsPacman",
        "mspacman",
        "Ms. Pac-Man",
        "ms_pacman",
        "MS PACMAN",
        "ALE/MsPacman-v5",
        "MsPacmanNoFrameskip-v4",
        "ale_py:ALE/MsPacman-v5",
        "ale_py.env:ALE/MsPacman-v5",
        "MsPacman-ram-v5",
        "ALE/MsPacman-ram-v5",
        "MsPacman-ramNoFrameskip-v4",
        "MsPacman-ramDeterministic-v0",
    ],
)
def test_every_spelling_of_ms_pacman_finds_one_game(spelling):
    assert find_game(spelling).rom == "ms_pacman"


@pytest.mark.parametrize(("spelling", "name"), [("Q*bert", "Qbert"), ("space invaders", "SpaceInvaders")])
def test_titles_with_punctuation_and_spaces_are_found(spelling, name):
    assert find_game(spelling).name == name


def test_every_listed_game_is_registered_with_gymnasium_under_its_name():
    import ale_py
    import gymnasium

    gymnasium.register_envs(ale_py)
    registered = {spec.split("/")[1].removesuffix("-v5") for spec in gymnasium.registry if spec.startswith("ALE/")}
    assert {game.name for game in list_games()} <= registered
    assert len(list_games()) == 104


def test_every_name_title_and_rom_finds_its_own_game():
    for game in list_games():
        assert find_game(game.name) == find_game(game.title) == find_game(game.rom) == game


def test_an_unknown_game_is_refused_with_the_nearest_names():
    with pytest.raises(UnknownGameError, match=r"got 'Carnivall'; nearest: Carnival"):
        find_game("Carnivall")


@pytest.mark.parametrize("name", ["combat", "Joust", "ALE/MazeCraze-v5", "warlords"])
def test_a_two_player_game_is_refused(name):
    with pytest.raises(MultiPlayerGameError, match="needs two players"):
        find_game(name)


def test_actions_are_words_in_the_order_of_the_environment():
    assert action_words("UPRIGHTFIRE") == "up right fire"
    assert action_names(find_game("Carnival")) == ("noop", "fire", "right", "left", "right fire", "left fire")
    assert len(action_names(find_game("Carnival"), full_action_space=True)) == 18


def test_screens_have_their_native_size():
    assert screen_size(find_game("Carnival")) == (214, 160)
    assert screen_size(find_game("MsPacman")) == (210, 160)
