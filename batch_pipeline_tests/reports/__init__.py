"""Tests of the report: its numbers, its faces and its document."""
