"""`python -m medbench` and the console script: runs the command line and turns errors into one line and a code."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from medbench.errors import MedbenchError


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs a command and exits: 0 done, 1 the work failed, 2 the request was wrong."""
    import typer

    from medbench.cli import app

    # Pillow's warnings about single images: what is wrong with an image is said by its item's error.
    warnings.filterwarnings("ignore", module=r"PIL\.")

    # Newer releases of typer carry click inside, older ones import it: either way this is its ClickException.
    click_error: Any = typer.BadParameter.__mro__[2]

    try:
        code = app(args=list(arguments) if arguments is not None else None, standalone_mode=False)
    except MedbenchError as error:
        code = _complain(str(error), error.exit_code)
    except click_error as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
            sys.exit(0)
        where = getattr(error, "ctx", None)
        hint = f" (see {where.command_path} --help)" if where is not None else ""
        code = _complain(error.format_message() + hint, 2)
    except (KeyboardInterrupt, typer.Abort):
        code = _complain("interrupted; the same command goes on from here", 130)
    except BrokenPipeError:
        sys.stderr.close()
        code = 1
    except OSError as error:  # the machine's, not the code's: a full disk, a folder that cannot be written
        code = _complain(str(error) if error.filename else f"reading or writing failed: {error}", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _complain(message: str, code: int) -> int:
    print("medbench: " + " ".join(message.split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
