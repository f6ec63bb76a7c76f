"""The shared limiter: its arithmetic, and the gate on a clock that the tests drive."""
