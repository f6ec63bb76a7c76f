"""Tests of batch_pipeline.workloads."""
