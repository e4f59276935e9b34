"""`python -m bandkeeper` is `bandkeeper`."""

from bandkeeper.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
