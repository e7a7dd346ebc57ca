"""``python -m ringbuffer``."""

import sys

from ringbuffer.cli import main

if __name__ == "__main__":
    sys.exit(main())
