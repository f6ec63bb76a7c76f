"""Search providers: what may be asked of them, and how their APIs are spoken to."""
