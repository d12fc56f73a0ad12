"""nemo-sky's execution layer: what you fork to change how jobs run.

Dependencies point one way: ``cli -> launch -> (task, backends, artifacts, lineage) -> (runspec, config)``.
``agent`` runs on the node and imports only ``artifacts``, ``lineage`` and ``errors``.
"""

__version__ = "0.1.0"
