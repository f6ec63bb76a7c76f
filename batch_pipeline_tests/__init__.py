"""Tests, in the order of the package: one folder for each room."""
