"""One item as an HTML page: which tokens each stage of each contender kept; self-contained."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby

from .contenders import Contender
from .sessions import Kept
from .subject import Prompt, Subject
from .tasks import Item

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em;
  color: #222; background: #fff; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.7 ui-monospace, monospace;
  border: 1px solid #ddd; padding: 1em; }
span.l { border-radius: 2px; }
table { border-collapse: collapse; } td, th { padding: 0.1em 0.8em; text-align: left; }
.n { text-align: right; }
"""


def write_page(subject: Subject, item: Item, contenders: Sequence[Contender]) -> str:
    """The page of one item, as HTML; every contender reads the prompt once for it."""
    prompt = subject.encode(item)
    parts = [_head(item, prompt)]
    for contender in contenders:
        with contender.of(item).open(subject, item, prompt, 0) as session:
            session.prefill()
            kept = session.kept()
        parts.append(_section(contender.title(item.task, item.category), prompt, kept))
    parts.append("</body>\n</html>\n")
    return "\n".join(parts)


def levels(tokens: int, kept: Sequence[Kept]) -> list[int]:
    """For each token how many of the selections it survived, one after another."""
    level = [0] * tokens
    for number, entry in enumerate(kept):
        for token in entry.tokens:
            if level[token] == number:
                level[token] = number + 1
    return level


def _head(item: Item, prompt: Prompt) -> str:
    answers = ", ".join(escape(answer) for answer in item.answers)
    title = escape(item.id)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{title}</title>\n"
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f"<p>{escape(item.task)}, {len(prompt.spans):,} tokens. Answers: {answers}</p>"
    )


def _section(name: str, prompt: Prompt, kept: Sequence[Kept]) -> str:
    count = len(prompt.spans)
    if not kept:
        return f"<h2>{escape(name)}</h2>\n<p>Every token is kept in every layer.</p>"
    level = levels(count, kept)
    rows = ["<tr><th>kept until</th><th class=n>tokens</th><th class=n>of all</th></tr>"]
    for number in range(len(kept) + 1):
        tokens = level.count(number)
        color = _color(number, len(kept))
        rows.append(
            f'<tr><td><span class=l style="background:{color}">{_stage(number, kept)}</span></td>'
            f"<td class=n>{tokens:,}</td><td class=n>{tokens / count:.0%}</td></tr>"
        )
    body = []
    for number, group in groupby(range(count), key=lambda token: level[token]):
        first, *rest = group
        text = prompt.text[prompt.spans[first][0] : prompt.spans[(rest or [first])[-1]][1]]
        title = f"tokens {first}–{(rest or [first])[-1]}: {_stage(number, kept)}"
        color = _color(number, len(kept))
        body.append(
            f'<span class=l style="background:{color}" title="{title}">{escape(text)}</span>'
        )
    return f"<h2>{escape(name)}</h2>\n<table>{''.join(rows)}</table>\n<pre>{''.join(body)}</pre>"


def _stage(number: int, kept: Sequence[Kept]) -> str:
    if number == len(kept):
        return "the end"
    layer = kept[number].layer
    return "taken out before the model" if layer < 0 else f"layer {layer}"


def _color(number: int, stages: int) -> str:
    """From white for what goes first to orange for what stays to the end."""
    part = number / stages
    return f"rgb({255 - round(3 * part)},{255 - round(79 * part)},{255 - round(172 * part)})"
