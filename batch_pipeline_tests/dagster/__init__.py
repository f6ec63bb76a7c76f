"""Tests of the Dagster layer, on real instances and the real simulator."""
