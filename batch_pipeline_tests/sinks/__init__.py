"""Tests of batch_pipeline.sinks."""
