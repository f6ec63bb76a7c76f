"""The engine against the simulator over HTTP."""
