"""Large tables through LLM APIs: finished, checked results that are paid for once.

Importing the package is cheap: rooms are imported where they are used.
"""
