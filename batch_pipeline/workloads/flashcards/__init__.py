"""Flashcards: topics of a curriculum in, checked question cards out.

What belongs here: the domain of flashcards. What does not: Dagster, providers, the engine.
"""
