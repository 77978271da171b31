"""``python -m ringcast.shm``: the self-check."""

import sys

from .selfcheck import main

sys.exit(main())
