"""The REST API, as a real server."""
