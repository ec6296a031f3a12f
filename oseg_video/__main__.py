"""`python -m oseg_video` is the command `oseg-video`."""

import sys

from oseg_video.cli import main

if __name__ == "__main__":
    sys.exit(main())
