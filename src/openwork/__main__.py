from openwork.cli.main import main

raise SystemExit(main())
