"""`python -m dlconsole`, the same as the `dlconsole` command."""

import sys

from dlconsole.cli import main

sys.exit(main())
