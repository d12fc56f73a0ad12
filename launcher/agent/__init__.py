"""What runs on a node around the training command: ``python -m launcher.agent --job DIR [--ray] -- CMD...``

Imports ``launcher.artifacts``, ``launcher.lineage`` and ``launcher.errors`` alone, so that it runs inside a
vendor's container with the standard library, PyYAML, boto3 and mlflow-skinny.
"""
