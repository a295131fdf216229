"""Tables in Markdown."""


def table(head, rows):
    """A Markdown table with its numbers aligned to the right."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
