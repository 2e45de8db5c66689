"""The page at `/api`: what the OpenAPI description says, for people, without a script or a file of elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2733}"
    "h2{margin:2rem 0 .25rem;font-size:1.1rem}code,h2{font-family:ui-monospace,monospace}"
    "b{color:#0b6b3a}table{border-collapse:collapse;width:100%}td{border-top:1px solid #ccd4dc;padding:.3rem .8rem .3rem 0;"
    "vertical-align:top}td:first-child{white-space:nowrap;font-family:ui-monospace,monospace}"
    "@media(prefers-color-scheme:dark){body{background:#12181f;color:#dfe7ee}b{color:#6fd39b}td{border-color:#3a4652}}"
)


def api_page(description: dict[str, Any]) -> str:
    """Return a page that lists the routes of an OpenAPI description with their fields."""
    title = escape(f"{description['info']['title']} {description['info']['version']}")
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width,initial-scale=1'>",
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>",
        f"<p>{escape(description['info'].get('description', ''))} For programs: ",
        '<a href=openapi.json>openapi.json</a>. What is refused is <code>{"error": "one sentence"}</code>.</p>',
    ]
    for path, methods in description["paths"].items():
        for method, route in methods.items():
            parts.append(
                f"<h2><b>{method.upper()}</b> {escape(path)}</h2><p>{escape(route.get('summary', ''))}</p>"
            )
            rows = "".join(
                f"<tr><td>{escape(name)}<td>{escape(kind)}<td>{escape(text)}"
                for name, kind, text in _fields(route, description)
            )
            parts.append(f"<table>{rows}</table>" if rows else "")
    return "".join(parts)


def _fields(route: dict[str, Any], description: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for one in route.get("parameters", ()):
        yield one["name"], _kind(one["schema"]), one.get("description", "")
    for content in route.get("requestBody", {}).get("content", {}).values():
        schema = content["schema"]
        for named in [schema, *schema.get("allOf", ())]:
            if "$ref" in named:
                schema = description["components"]["schemas"][named["$ref"].rpartition("/")[2]]
        for name, one in schema.get("properties", {}).items():
            yield name, _kind(one), one.get("description", "")


def _kind(schema: dict[str, Any]) -> str:
    options = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    one = options[0]
    if "enum" in one:
        return ", ".join(str(value) for value in one["enum"])
    if "contentMediaType" in one or one.get("format") == "binary":
        return "file"
    bounds = [str(one[key]) for key in ("minimum", "maximum") if key in one]
    return f"{one.get('type', '')} {' to '.join(bounds)}".strip()
