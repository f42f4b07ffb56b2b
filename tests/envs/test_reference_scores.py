"""Reference scores have a protocol and a source; a missing one is refused."""

import pytest

from envs.games import find_game
from envs.reference_scores import REFERENCES, MissingReferenceError, all_references, reference


def test_carnival_has_no_human_score():
    with pytest.raises(MissingReferenceError, match="no human score of Carnival exists"):
        reference(find_game("Carnival"), "human")


def test_a_missing_score_is_refused_with_the_known_ones():
    with pytest.raises(MissingReferenceError, match="known: random, human"):
        reference(find_game("Pong"), "Rainbow")


def test_a_published_score_is_found():
    assert reference(find_game("Carnival"), "IQN, 200 M frames").score == 5617


def test_every_reference_belongs_to_a_known_game():
    assert all(row in all_references(find_game(row.game)) for row in REFERENCES)
