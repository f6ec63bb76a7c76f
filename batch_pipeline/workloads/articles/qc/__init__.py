"""Quality control of articles: rules, verdict, and the one automatic repair."""
