"""What a person sees, in headless Chromium."""
