"""The style sheet and the script of HTML pages: light, dark and printed; tables that sort."""

LIGHT = {"ink": "#222222", "paper": "#ffffff", "faint": "#595959", "line": "#d0d0d0", "link": "#1f4e9e", "panel": "#f4f6f9"}
DARK = {"ink": "#dddddd", "paper": "#181818", "faint": "#a8a8a8", "line": "#4a4a4a", "link": "#8ab4f8", "panel": "#242424"}
"""Colours by their use. Text is at least 4.5 times as light or dark as what it stands on (WCAG 2.2, 1.4.3)."""


def _variables(colors: dict[str, str]) -> str:
    return " ".join(f"--{name}: {color};" for name, color in colors.items())


STYLE = f"""
:root {{ color-scheme: light dark; {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
* {{ box-sizing: border-box; }}
body {{ font: 16px/1.55 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; color: var(--ink); background: var(--paper);
  overflow-wrap: break-word; }}
.skip {{ position: absolute; left: -99rem; }} .skip:focus {{ left: 1rem; top: .5rem; background: var(--paper); padding: .3rem .6rem; }}
a {{ color: var(--link); }} :focus-visible {{ outline: 2px solid var(--link); outline-offset: 2px; }}
h1 {{ font-size: 1.75rem; line-height: 1.25; margin: .2rem 0 .6rem; }} h2 {{ font-size: 1.3rem; margin: 2.4rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }}
.kind {{ margin: 0; color: var(--faint); font-size: .95rem; }}
.lead p {{ max-width: 46rem; margin: .5rem 0; }} .lead p:first-child {{ font-size: 1.15rem; }}
section > p {{ max-width: 46rem; }} .note + .note {{ margin-top: -.6rem; }} .note, figcaption, caption {{ color: var(--faint); font-size: .9rem; }}
nav ul {{ list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; margin: 1rem 0 0; }}
.facts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); gap: .7rem 1.5rem; margin: 1rem 0; background: var(--panel); padding: 1rem; border-radius: 6px; }}
.facts div {{ min-width: 0; }} .facts .wide {{ grid-column: 1 / -1; }} dt {{ color: var(--faint); font-size: .85rem; }} dd {{ margin: 0; overflow-wrap: anywhere; }}
code, pre {{ font: .88em/1.5 ui-monospace, monospace; }} p code {{ overflow-wrap: anywhere; }}
.unseen {{ position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }} figcaption {{ position: relative; }}
.figures {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1.4rem; align-items: start; }}
figure {{ margin: 0; min-width: 0; }} figure.wide {{ grid-column: 1 / -1; }}
img {{ display: block; max-width: 100%; height: auto; background: #fff; border-radius: 4px; margin: 0 auto .4rem; }}
figcaption {{ max-width: 46rem; }}
@media screen and (max-width: 44rem) {{ .pan {{ overflow-x: auto; }} .pan img {{ max-width: none; width: 46rem; }} }}
.scroll {{ overflow-x: auto; margin: 1rem 0; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }} caption {{ text-align: left; padding: 0 0 .4rem; max-width: min(46rem, calc(100vw - 2rem)); }}
th, td {{ padding: .3rem .7rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line); }} thead th {{ vertical-align: bottom; }}
tbody th, tfoot th {{ font-weight: normal; }} th:first-child {{ text-align: left; padding-left: 0; }} td, tbody th, tfoot th {{ white-space: nowrap; }} td.text, th.text {{ text-align: left; min-width: 12rem; white-space: normal; overflow-wrap: anywhere; }}
.chosen > * {{ background: var(--panel); font-weight: 600; }}
th button {{ font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: 0; text-align: inherit; cursor: pointer; }}
th button::after {{ content: "\\2195"; color: var(--faint); padding-left: .3em; font-weight: normal; }}
th[aria-sort=ascending] button::after {{ content: "\\2191"; }} th[aria-sort=descending] button::after {{ content: "\\2193"; }}
details {{ margin: .8rem 0; }} summary {{ cursor: pointer; }} pre {{ overflow-x: auto; background: var(--panel); padding: .8rem; border-radius: 6px; }}
footer {{ margin-top: 3rem; color: var(--faint); font-size: .9rem; border-top: 1px solid var(--line); overflow-wrap: anywhere; }}
@media print {{
  :root {{ {_variables(LIGHT)} }}
  @page {{ margin: 15mm; }}
  body {{ font-size: 10pt; max-width: none; padding: 0; }} nav, .skip, .data, th button::after {{ display: none; }}
  figure, tr, .facts {{ break-inside: avoid; }} h2, caption {{ break-after: avoid; }}
  .figures {{ grid-template-columns: 1fr 1fr; }} figure.tall img {{ max-height: 200mm; width: auto; }}
  .scroll {{ overflow: visible; }} table {{ font-size: 8pt; }} th, td, td:not(.text) {{ padding: .15rem .3rem; white-space: normal; }} a {{ color: inherit; text-decoration: none; }}
}}
""".strip()

SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    const key = row => row.cells[column].dataset.order ?? row.cells[column].textContent.trim();
    button.addEventListener("click", () => {
      const turn = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", turn > 0 ? "ascending" : "descending");
      const rows = [...body.rows].sort((first, second) => {
        const [a, b] = [key(first), key(second)];
        if (!a || !b) return (a ? 0 : 1) - (b ? 0 : 1);
        return turn * (isNaN(a) || isNaN(b) ? a.localeCompare(b, "en", {numeric: true}) : a - b);
      });
      body.append(...rows);
    });
  });
}
""".strip()
"""Makes headings of tables into buttons; without it, and in print, they are plain headings. Rows without a value stay last."""
