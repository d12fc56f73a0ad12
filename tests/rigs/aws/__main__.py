"""``python -m tests.rigs.aws up DIR`` and ``down DIR``: a rig in a developer's shell."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.rigs.aws.rig import down, up

USAGE = "usage: python -m tests.rigs.aws up|down DIR"

if __name__ == "__main__":
    match sys.argv[1:]:
        case ["up", folder]:
            rig = up(Path(folder))
            print(f"source {rig.folder}/env.sh")
            print(f"profile: {rig.profile}\nS3: {rig.s3_endpoint}, bucket: {rig.bucket}")
        case ["down", folder]:
            down(Path(folder))
        case _:
            sys.exit(USAGE)
