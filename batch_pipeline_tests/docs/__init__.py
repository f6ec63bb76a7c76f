"""Tests of the documents: what they say agrees with the code."""
