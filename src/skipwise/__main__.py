"""`python -m skipwise`, and so `torchrun -m skipwise extend ...` on several processes."""

import sys

from skipwise.cli import main

sys.exit(main())
