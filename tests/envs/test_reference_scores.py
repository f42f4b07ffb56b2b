"""Reference scores are given with protocol and source, or refused; never guessed."""

import pytest

from envs.games import find_game
from envs.reference_scores import REFERENCES, MissingReferenceError, all_references, reference


def test_a_human_score_of_carnival_is_said_not_to_exist():
    with pytest.raises(MissingReferenceError, match="no human score of Carnival exists"):
        reference(find_game("Carnival"), "human")


def test_a_missing_score_names_what_is_known():
    with pytest.raises(MissingReferenceError, match="known: random, human"):
        reference(find_game("Pong"), "Rainbow")


def test_published_scores_carry_their_protocol_and_source():
    assert reference(find_game("Carnival"), "IQN, 200 M frames").score == 5617
    assert all(row.protocol and row.source for row in REFERENCES)


def test_every_reference_is_of_a_game_that_exists():
    assert all(row in all_references(find_game(row.game)) for row in REFERENCES)
