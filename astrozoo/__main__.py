"""``python -m astrozoo``: the same as the ``astrozoo`` command."""

from __future__ import annotations

from astrozoo.cli import main

if __name__ == "__main__":
    main()
