"""``python -m undula`` is ``undula``."""

import sys

from undula.cli.main import main

sys.exit(main())
