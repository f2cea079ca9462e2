"""The report as one HTML page: no script, nothing from the network, readable on paper."""

from __future__ import annotations

from html import escape

from orchestrator.report.content import Answer, Report
from orchestrator.report.decisions import sentence
from orchestrator.report.privacy import NAME as PRIVACY
from orchestrator.report.sections import pictures, seeds_told
from orchestrator.report.tables import Cell, Column, Table

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  color: #1c1c1c; background: #fff; max-width: 78rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; }
h2 { font-size: 1.3rem; margin: 2.4rem 0 .6rem; border-bottom: 2px solid #1c1c1c; }
h4 { font-size: .95rem; margin: 1.2rem 0 .2rem; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; overflow-wrap: anywhere; }
.meta, caption, figcaption, .note { color: #555; }
.answer { border-left: 4px solid #0072B2; padding: .2rem 0 .2rem 1rem; margin: .8rem 0 1.2rem; }
.answer li { margin: .35rem 0; }
.caution { border-left: 4px solid #D55E00; padding: .2rem 0 .2rem 1rem; }
.wide { overflow-x: auto; margin: .6rem 0 1.2rem; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; caption-side: bottom; padding-top: .35rem; font-size: .8rem; }
th, td { padding: .28rem .5rem; text-align: right; vertical-align: top; }
th { border-bottom: 1.5px solid #1c1c1c; vertical-align: bottom; font-weight: 600; }
td { border-bottom: 1px solid #ddd; }
th.text, td.text { text-align: left; }
td.text { min-width: 5rem; }
td.runs { font-size: .72rem; color: #444; min-width: 9rem; overflow-wrap: anywhere; }
tr.part td { border-top: 1.5px solid #888; }
figure { margin: 1rem 0 1.6rem; }
figure svg, figure img { max-width: 100%; height: auto; }
figcaption { font-size: .8rem; }
dt { font-weight: 600; } dd { margin: 0 0 .4rem 1.2rem; }
@media print {
  @page { size: A4 landscape; margin: 12mm; }
  body { font-size: 9.5pt; max-width: none; margin: 0; padding: 0; }
  caption, figcaption { font-size: 7.5pt; }
  .wide { overflow: visible; } table { font-size: 7pt; } th, td { padding: 1.5pt 3pt; }
  td.runs { font-size: 5.5pt; min-width: 0; }
  figure, tr, .answer { break-inside: avoid; } h2, h3, h4 { break-after: avoid; }
  thead { display: table-header-group; }
}
"""

DECISIONS = ("budgets", "targets", "areas")
"""Tables of a scenario that answer the question."""

SHOWN = ("results", "tests", "effort", "clients")
"""Tables of a scenario's section."""

GLOSSARY = {
    "method": "what clients train, and how their updates become one model.",
    "scenario": "a data set, how it is split over clients, and what is asked of the models.",
    "client": "a participant with data of its own, which never leave it.",
    "budget": "megabytes (10^6 bytes) that a client may send and receive in the whole run.",
    "seed": "a repetition with other random draws: it shows how much is chance.",
    "zero-shot": "the model with a written prompt, untrained: it costs nothing to send.",
    "local only": "each client trains alone for as long, and sends nothing.",
    "centralised": "all data in one place, as many passes: what is lost by not pooling data.",
    "95 %": "the interval in which the mean over seeds lies with that confidence.",
}


def as_html(report: Report, title: str = "Which federated method to take") -> str:
    """The page, complete in itself. Every name in it is escaped."""
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="meta">{escape(_about(report))}</p>',
        "<h2>In short</h2>",
        *(_short(report, answer) for answer in report.answers),
        _cautions(report),
        "<h2>Decision tables</h2>",
        *(_decisions(report, answer) for answer in report.answers),
        *(_scenario(report, answer) for answer in report.answers),
        *(f"<h2>Privacy</h2>\n{_table(t)}" for t in report.tables if t.name == PRIVACY),
        "<h2>Cost by phase</h2>",
        _table(report.table("time")),
        "<h2>Environment</h2>",
        _table(report.table("environment")),
        "<h2>Every run</h2>",
        _table(report.table("runs")),
        _left_out(report),
        "<h2>Words</h2>",
        "<dl>",
        *(f"<dt>{escape(w)}</dt><dd>{escape(m)}</dd>" for w, m in GLOSSARY.items()),
        "</dl>",
    ]
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>"
    )
    body = "\n".join(part for part in parts if part)
    start = '<!doctype html>\n<html lang="en">'
    return f"{start}\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n"


def _about(report: Report) -> str:
    methods = {row.method for row in report.rows if row.kind == "method"}
    runs = sum(len(row.configs) for row in report.rows)
    counted = [_count(runs, "run"), _count(len(methods), "method")]
    counted += [_count(len(report.answers), "scenario"), seeds_told(report.rows)]
    word = report.ask.word[0].upper() + report.ask.word[1:]
    return f"{', '.join(counted)}. {word} means: {report.ask.what}, last round that was paid for."


def _short(report: Report, answer: Answer) -> str:
    word = report.ask.word
    found = [sentence(choice, word) for choice in answer.choices]
    cheapest = answer.cheapest
    target = f"{100 * cheapest.target:g} % {word}"
    if cheapest.method is None:
        found.append(f"No method reaches {target} with every seed.")
    else:
        price = f"{cheapest.megabytes:.3g} MB per client"
        if not cheapest.megabytes:
            price = "0 MB: its model is as good before anything is trained"
        found.append(f"Cheapest way to {target}: {cheapest.method}, {price}.")
    items = "".join(f"<li>{_strong(text)}</li>" for text in found)
    return f'<div class="answer"><h3>{escape(answer.scenario)}</h3><ul>{items}</ul></div>'


def _decisions(report: Report, answer: Answer) -> str:
    tables = [_table(report.table(name).of(answer.scenario)) for name in DECISIONS]
    return "\n".join([f"<h3>{escape(answer.scenario)}</h3>", *tables])


def _strong(text: str) -> str:
    """The decision itself, up to the first full stop or colon, in bold."""
    ends = [place for mark in (": ", ". ") if (place := text.find(mark)) > 0]
    end = min(ends, default=len(text))
    return f"<strong>{escape(text[:end])}</strong>{escape(text[end:])}"


def _cautions(report: Report) -> str:
    if not report.cautions:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in report.cautions)
    return f'<div class="caution"><h3>What limits this</h3><ul>{items}</ul></div>'


def _scenario(report: Report, answer: Answer) -> str:
    scenario = answer.scenario
    shown = pictures(report, scenario)
    figures = [
        f"<figure>{p.markup}<figcaption>{escape(p.caption)}</figcaption></figure>" for p in shown
    ]
    tables = [_table(report.table(name).of(scenario)) for name in SHOWN]
    verdict = next(
        (
            line.removeprefix(f"{scenario}: ")
            for line in report.comparison.verdict.splitlines()
            if len(report.answers) == 1 or line.startswith(f"{scenario}: ")
        ),
        "",
    )
    verdict = verdict.replace(report.ask.metric, report.ask.word)
    told = f"<p>At the end of all runs: {escape(verdict)}</p>"
    lead = figures[:1]
    return "\n".join([f"<h2>{escape(scenario)}</h2>", *lead, told, *tables, *figures[1:]])


def _table(table: Table) -> str:
    if not table.rows:
        return ""
    table = table.without_empty()
    kinds = [_class(table, i) for i in range(len(table.columns))]
    head = "".join(
        f'<th scope="col" class="{kind}">{escape(column.header)}</th>'
        for column, kind in zip(table.columns, kinds, strict=True)
    )
    keys = [column.key for column in table.columns]
    at = keys.index("kind") if "kind" in keys else None
    rows = []
    for i, row in enumerate(table.rows):
        is_part = at is not None and i and row[at] != table.rows[i - 1][at]
        cells = "".join(
            _cell(column, value, kind)
            for column, value, kind in zip(table.columns, row, kinds, strict=True)
        )
        rows.append(f'<tr class="part">{cells}</tr>' if is_part else f"<tr>{cells}</tr>")
    return (
        f'<h4>{escape(table.title)}</h4><div class="wide"><table><caption>{escape(table.note)}'
        f"</caption><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(column: Column, value: Cell, kind: str) -> str:
    return f'<td class="{kind}">{escape(column.shown(value))}</td>'


def _class(table: Table, place: int) -> str:
    if table.columns[place].key in ("runs", "run"):
        return "text runs"
    is_text = any(isinstance(row[place], str) for row in table.rows)
    return "text" if is_text else "num"


def _left_out(report: Report) -> str:
    if not report.left_out:
        return ""
    items = "".join(
        f"<li>{escape(name)}: {escape(why)}</li>" for name, why in report.left_out.items()
    )
    return f"<h3>Left out</h3><ul>{items}</ul>"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
