"""The `latentplan` command: registers `commands/`, and turns errors into one line.

Nothing heavy is imported here or at the top of `commands/`, so that `--help` comes at once.
"""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from latentplan import __version__
from latentplan.commands import (
    calibrate,
    check,
    collect,
    config,
    doctor,
    export,
    import_,
    plan,
    record,
    replay,
    robot,
    show,
    train,
)
from latentplan.commands import list as list_
from latentplan.errors import LatentplanError

INTERRUPTED = 130  # 128 + SIGINT, what shells expect
# A disk that is full (or as good as) or closed to us is the user's matter.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
# Functions of the library whose parameters are options of a command, by the command.
FUNCTIONS = {"plan": "evaluate", "record": "record|robot", "replay": "replay|robot"}

app = typer.Typer(
    name="latentplan",
    help="Learn a latent dynamics model from robot experience and plan with it.",
    epilog="Example: latentplan plan --run rope-cfm",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help comes in half the time; rich draws the progress bars
)


def _version(asked: bool) -> None:
    if asked:
        print(f"latentplan {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


COMMANDS: dict[str, Any] = {
    "collect": collect,
    "import": import_,
    "export": export,
    "train": train,
    "plan": plan,
    "list": list_,
    "show": show,
    "calibrate": calibrate,
    "robot": robot,
    "record": record,
    "replay": replay,
    "config": config,
    "check": check,
    "doctor": doctor,
}
for _name, _module in COMMANDS.items():
    _more = getattr(_module, "MORE", "")
    app.command(name=_name, epilog=f"Example: {_module.EXAMPLE}{_more}")(_module.command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0 done, 2 a user's mistake, 130 Ctrl-C.

    An error of our own keeps its traceback.
    """
    arguments = _filled(sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        code = app(arguments, prog_name="latentplan", standalone_mode=False)
    except typer.TyperException as e:
        return _refuse(e.format_message())
    except LatentplanError as e:
        return _refuse(as_options(str(e), command=arguments[0]))
    except OSError as e:
        if e.errno not in NO_SPACE:
            raise
        return _refuse(f"{e.filename or 'disk'}: {e.strerror}")
    if code == INTERRUPTED:  # what typer makes of a KeyboardInterrupt
        print("latentplan: interrupted; what was done is kept", file=sys.stderr)
    return code if isinstance(code, int) else 0


def as_options(message: str, *, command: str) -> str:
    """Return an error of the library with the command's options in place of parameters.

    `collect.episodes: 0 must be at least 1` becomes `--episodes: 0 must be at least 1`.
    """
    functions = FUNCTIONS.get(command, re.escape(command))
    named = re.match(rf"(?:{functions})\.(\w+)(?=[: ])", message)
    return f"--{named[1].replace('_', '-')}{message[named.end() :]}" if named else message


def _filled(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the value of `--ray` that may be left out; typer has no such."""
    following = [*arguments[1:], "-"]
    return [
        "--ray=local" if this == "--ray" and after.startswith("-") else this
        for this, after in zip(arguments, following, strict=False)
    ]


def _refuse(message: str) -> int:
    line = " ".join(message.split())
    print(f"latentplan: {line}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
