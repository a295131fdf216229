"""Whether a saved benchmark would be of the commit that it names."""

import subprocess


def why_not_clean(root):
    """Why the tracked files of a directory are not those of a commit, or ""."""
    status = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no", "."],
        cwd=root,
        capture_output=True,
        text=True,
    )
    if status.returncode:
        return f"git finds none: {status.stderr.strip()}"
    changed = status.stdout.splitlines()
    return f"{len(changed)} tracked file(s) are modified" if changed else ""
