"""``python -m lib_ipadapter``."""

from .cli import main

raise SystemExit(main())
