"""`--seeds A:B`, the same for every command that takes many."""

from typing import Any

import click


class SeedRange(click.ParamType):  # type: ignore[type-arg]  # generic in the stubs only
    """`A:B`, half open; `A` alone means A:A+1."""

    name = "A:B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> range:
        if isinstance(value, range):
            return value
        first, colon, last = str(value).partition(":")
        try:
            found = range(int(first), int(last) if colon else int(first) + 1)
        except ValueError:
            self.fail(f"expected two numbers as in 0:100, found {value!r}", param, ctx)
        if not found or found.start < 0:
            self.fail(f"expected a range with at least one seed from 0 up, found {value!r}", param, ctx)
        return found
