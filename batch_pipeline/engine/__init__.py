"""The batch engine: plan, pack, admit, call, settle; knows neither Dagster nor any provider's
SDK.
"""
