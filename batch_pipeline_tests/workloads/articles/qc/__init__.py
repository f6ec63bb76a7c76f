"""Tests of the quality control of articles."""
