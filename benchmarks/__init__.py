"""Figures of this project and its peers, measured within one run; never asserted in a test."""
