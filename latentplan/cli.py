"""The `latentplan` command: registers `commands/`, and turns errors into one line.

Nothing heavy is imported here or at the top of `commands/`, so that `--help` comes at once.
"""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from latentplan import __version__
from latentplan.commands import (
    bench,
    calibrate,
    check,
    collect,
    config,
    doctor,
    evaluate,
    export,
    import_,
    improve,
    join,
    plan,
    record,
    replay,
    robot,
    show,
    train,
)
from latentplan.commands import list as list_
from latentplan.errors import LatentplanError
from latentplan.files import FULL

INTERRUPTED = 130  # 128 + SIGINT, what shells expect
# What else a disk or a path of the user's can be the reason of; the rest (EBADF, ...) is a bug.
OF_THE_DISK = (
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR),
    *(errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP, errno.EIO, errno.EBUSY, errno.ENXIO),
    *(errno.ENODEV, errno.EMFILE, errno.ENFILE, errno.ESTALE),
)
# Functions of the library whose parameters are options of a command, by the command.
FUNCTIONS = {
    "bench": "bench_models",
    "doctor": "check_up",
    "evaluate": "evaluate_offline",
    "plan": "evaluate",
    "record": "record|robot",
    "replay": "replay|robot",
}

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
    "join": join,
    "train": train,
    "improve": improve,
    "plan": plan,
    "evaluate": evaluate,
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
    app.command(name=_name, epilog=f"Example: {_module.EXAMPLE}")(_module.command)
app.add_typer(bench.app, name="bench")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0 done, 2 a user's mistake, 130 Ctrl-C.

    An error of our own keeps its traceback.
    """
    arguments = _filled(sys.argv[1:] if argv is None else argv) or ["--help"]
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may be no text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        for argument in arguments:
            _check(argument)
        code = app(arguments, prog_name="latentplan", standalone_mode=False)
    except typer.TyperException as e:
        return _refuse(e.format_message())
    except LatentplanError as e:
        return _refuse(as_options(str(e), command=arguments[0]))
    except OSError as e:
        if (reason := of_the_disk(e, arguments)) is None:
            raise
        return _refuse(reason)
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


def of_the_disk(error: OSError, arguments: Sequence[str]) -> str | None:
    """Return the line for an error that the user's disk or path is the reason of, else None.

    A file that is missing is so only if an argument names it or a folder above it; one that this
    package or the interpreter brings never is.
    """
    path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    path = re.sub(r"(^|/)\.([^/]+)\.[0-9a-f]+\.partial", r"\1\2", path)  # what it was to become
    if error.errno in FULL:
        return f"{path or 'disk'}: the disk is full; free some space and run the same again"
    own = (Path(__file__).parent, Path(sys.prefix), Path(sys.base_prefix))
    if any(path.startswith(f"{each}{os.sep}") for each in own):
        return None
    named = [a.rpartition("=")[2] for a in arguments]
    missing = error.errno == errno.ENOENT and any(a and path.startswith(a) for a in named)
    if missing or error.errno in OF_THE_DISK:
        return f"{path or 'disk'}: {error.strerror}; give another path, or mend this one"
    return None


def _check(argument: str) -> None:
    """Raise LatentplanError for what is neither text nor the name of a file."""
    try:
        os.fsencode(argument)
    except UnicodeEncodeError:
        raise LatentplanError(f"{argument!r}: is not text; write it again") from None
    if "\0" in argument:
        raise LatentplanError(f"{argument!r}: has a zero character; no name or path can")


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
