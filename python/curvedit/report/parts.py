"""What every page of this package is put together from: its frame, warnings and tables of facts."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from curvedit.report.style import CSS


def whole_page(
    title: str, sections: Iterable[str], versions: Mapping[str, Any], extra_css: str = ""
) -> str:
    """A self-contained page: nothing is loaded, and empty sections are left out.

    Args:
        title: As plain text.
        sections: As HTML, in their order.
        versions: What made the numbers, for the foot of the page.
        extra_css: Rules after those of every page.
    """
    foot = " · ".join(f"{name} {version}" for name, version in versions.items())
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        f"<title>{escape(title)}</title>"
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<style>{CSS}{extra_css}</style></head><body><main>\n"
        + "\n".join(section for section in sections if section)
        + "\n"
        f"<footer>{escape(foot)}</footer></main></body></html>\n"
    )


def warnings_box(warnings: Sequence[str]) -> str:
    """The warnings as a marked list; nothing without any."""
    if not warnings:
        return ""
    rows = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    return f'<div class="warnings"><strong>Warnings</strong><ul>{rows}</ul></div>'


def facts(title: str, found: Mapping[str, Any]) -> str:
    """Facts as a sheet of two columns; nothing without any."""
    rows = "".join(
        f'<tr><td class="key">{escape(key)}</td><td class="text mono">{escape(value)}</td></tr>'
        for key, value in flat(found)
    )
    return (
        f'<div class="sheet"><h3>{escape(title)}</h3><table><tbody>{rows}</tbody></table></div>'
        if rows
        else ""
    )


def flat(found: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested facts as rows; absent ones are left out."""
    for key, value in found.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        elif value is not None and value != "":
            yield (
                f"{prefix}{key}",
                ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value),
            )
