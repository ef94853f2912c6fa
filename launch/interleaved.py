"""Settings between flags: `lacuna finetune configs/x.py --from-scratch name=first --fresh seed=1`."""

from __future__ import annotations

import argparse
from typing import Any


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose positional `overrides` may go on behind a flag. argparse itself fills a positional that
    takes any number of words with the first row of them, and parse_intermixed_args knows no verbs."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; words that found no place are overrides where the verb takes them, in the order they have."""
        options, rest = self.parse_known_args(args, namespace)
        unknown = [word for word in rest if word.startswith("-") or not hasattr(options, "overrides")]
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        if rest:
            options.overrides = [*options.overrides, *rest]
        return options
