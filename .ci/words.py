"""Refuse the words of .ci/words.txt in what git tracks: `file:line: 'WORD': write ADVICE`."""

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def rules(text: str) -> list[tuple[re.Pattern[str], str]]:
    """Return the pattern and the advice of each line; a word ends at `_` or a capital too."""
    found = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            words, advice = re.split(r"\s{2,}", line, maxsplit=1)
            phrase = words.replace(" ", r"[\s#]+")  # a phrase may go on in the next line
            found.append((re.compile(rf"(?<![a-z])(?i:{phrase})(?![a-z])"), advice))
    return found


def offences(name: str, text: str, refused: list[tuple[re.Pattern[str], str]]) -> list[str]:
    """Return a message for each refused word of a file."""
    return [
        f"{name}:{text[: match.start()].count(chr(10)) + 1}: {match[0]!r}: write {advice}"
        for pattern, advice in refused
        for match in pattern.finditer(text)
    ]


def main() -> int:
    """Print the offences of all files; return 1 if there are any."""
    listed = ["git", "ls-files", "*.py", "*.md", "*.yaml"]
    names = subprocess.run(listed, cwd=HERE.parent, capture_output=True, text=True, check=True)
    refused = rules((HERE / "words.txt").read_text())
    found: list[str] = []
    for name in names.stdout.splitlines():
        path = HERE.parent / name
        if path.is_file():
            found += offences(name, path.read_text(), refused)
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
