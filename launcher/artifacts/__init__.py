"""Artifacts: versioned files with typed metadata, whole and verifiable or invisible.

    uri -> registry -> (manifest, transfer) -> store (a folder, or S3)
                checkpoints ┘

Importable on a node: the standard library, and boto3 only where an ``s3://`` store is opened.
"""
