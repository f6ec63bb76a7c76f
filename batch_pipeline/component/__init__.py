"""The Dagster side of a workload: a component that turns a defs.yaml into assets and jobs.

What belongs here: assets, checks, automation, resources and metadata names. What does not:
instances (defs/), and anything that works without Dagster (workloads/, engine/).
"""

from batch_pipeline.component.llm_workload import LlmWorkload

__all__ = ["LlmWorkload"]
