"""The `lacuna` command enters here: importing `pretrain` has already refused a foreign `launch`, which entering through
`launch.cli` could not."""

from __future__ import annotations

import sys


def main() -> int:
    """Runs the command line; returns the process's exit code."""
    from launch import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
