"""The same as the ``fmerge`` command."""

from fmerge.cli import main

if __name__ == "__main__":
    main()
