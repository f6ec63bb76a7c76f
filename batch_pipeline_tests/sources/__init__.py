"""Tests of batch_pipeline.sources."""
