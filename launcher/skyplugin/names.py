"""What the launcher and the plugin call each other; imports nothing."""

STRATEGY = "NEMO_SKY"
KEY = "nemo_sky"  # of job_recovery, with the strategy's terms
NAME = "nemo-sky"  # of the plugin, as the server tells it
UNCONSOLIDATED = "nemo-sky without jobs.controller.consolidation_mode"
CLASS = "launcher.skyplugin.plugin.Plugin"
