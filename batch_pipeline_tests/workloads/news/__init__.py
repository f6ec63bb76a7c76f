"""Tests of the news workload."""
