"""Speed, measured as ratios within one run against the simulator; never asserted in a test."""
