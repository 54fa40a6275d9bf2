"""`python -m medtl.cli` is `medtl`."""

from medtl.cli.entry import main

raise SystemExit(main())
