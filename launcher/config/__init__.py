"""Compose a stage's configuration: files, inheritance, overrides, interpolation; and where values are from.

compose(config_dir, name, overrides)   -> Composed
rows(composed)                         what `config show` prints
flatten(values), dump_yaml(values)     for MLflow's parameters and for the script
"""

from launcher.config.compose import Composed, compose
from launcher.config.output import dump_yaml, flatten, rows
from launcher.config.overrides import Override, parse_override

__all__ = ["Composed", "Override", "compose", "dump_yaml", "flatten", "parse_override", "rows"]
