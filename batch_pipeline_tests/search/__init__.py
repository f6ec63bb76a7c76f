"""Search providers: codecs against the simulator, keys, intents, heuristic results."""
