"""``python -m launcher.agent --job DIR [--ray] -- CMD...``"""

import sys

from launcher.agent.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
