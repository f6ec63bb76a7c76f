"""Tests of batch_pipeline/engine/lanes."""
