"""Tests of the flashcards workload."""
