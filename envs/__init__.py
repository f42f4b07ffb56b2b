"""Atari games: names, protocols, parallel environments, stored episodes, objects, reference scores."""
