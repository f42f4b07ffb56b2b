"""`python -m pretrain.referring`: train referring segmentation, or show a mask; see `pretrain.referring.train`."""

import sys

from common.command import run
from pretrain.referring.train import main

if __name__ == "__main__":
    sys.exit(run(main))
