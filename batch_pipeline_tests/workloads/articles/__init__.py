"""Tests of the articles workload."""
