"""Tests of fetching pages: a real server on loopback, reached through the allow-list."""
