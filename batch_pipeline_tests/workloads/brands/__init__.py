"""Tests of the workload brands."""
