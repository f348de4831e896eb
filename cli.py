"""The same as the ``fmerge`` command."""

from fmerge.cli.app import main

if __name__ == "__main__":
    main()
