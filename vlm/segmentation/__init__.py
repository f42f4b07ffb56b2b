"""Masks from words: the mask head and point prediction."""
