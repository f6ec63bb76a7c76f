"""Dagster objects only, loaded by themselves: one folder per workload, one file per concept."""
