"""The roadmaps workload: a short summary and a difficulty for each topic of a learning roadmap.

What belongs here: its rows, its roadmap folders, its step and its deliverables. What does not:
knobs (defs/roadmaps/).
"""
