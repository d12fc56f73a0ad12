"""What runs inside SkyPilot: our recovery strategy for its managed jobs, and the plugin that registers it."""
