"""``python -m shm``: the self-check."""

import sys

from .selfcheck import main

sys.exit(main())
