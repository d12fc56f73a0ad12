"""Experiments under a cap: many launches of one stage, proposed by Optuna, paid from one budget."""
