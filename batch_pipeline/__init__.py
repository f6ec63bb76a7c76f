"""batch_pipeline puts large tables through LLM APIs and gives back finished, checked, paid-for-once results.

Importing the package is cheap: rooms are imported where they are used.
"""
