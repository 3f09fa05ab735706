"""The look of a report: read in the light and in the dark, on a phone and on paper; nothing comes from elsewhere."""

from __future__ import annotations

from pipeline.evaluation.depth_colours import letters_on, tint

_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#57606a;--paper:#fff;--card:#f6f7f9;--line:#d8dde3;--accent:#0072b2;
--mark:#fff4d6;--shade:0 1px 3px #0000001a}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8eb;--soft:#a3abb5;--paper:#14171b;--card:#1d2127;--line:#343b44;
--accent:#6cb8ea;--mark:#3a3216;--shade:none}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.6 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:68rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
header{border-bottom:1px solid var(--line);padding-bottom:1.5rem;margin-bottom:1.5rem}
.kind{color:var(--accent);font-size:.8rem;font-weight:600;letter-spacing:.08em;text-transform:uppercase;margin:0}
h1{font-size:2rem;line-height:1.2;margin:.2rem 0 .4rem;overflow-wrap:anywhere}
h2{font-size:1.35rem;margin:3rem 0 .6rem;padding-top:.4rem;scroll-margin-top:1rem}
h3{font-size:1rem;margin:0 0 .2rem}
p{margin:.4rem 0;max-width:46rem}.soft{color:var(--soft)}
a{color:var(--accent)}
nav{display:flex;flex-wrap:wrap;gap:.35rem .5rem;margin-top:1.2rem}
nav a{border:1px solid var(--line);border-radius:1rem;padding:.1rem .8rem;font-size:.88rem;text-decoration:none}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(10rem,1fr));gap:.8rem;margin:1.4rem 0;padding:0}
.fact{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.8rem 1rem}
.fact dt{color:var(--soft);font-size:.85rem;margin:0}
.fact dd{margin:0}.fact .value{font-size:1.6rem;font-weight:650;line-height:1.25;font-variant-numeric:tabular-nums}
.fact .unit{color:var(--soft);font-size:.82rem}
.lines{display:grid;grid-template-columns:max-content 1fr;gap:.25rem 1.5rem;margin:1rem 0;font-size:.92rem}
.lines dt{color:var(--soft)}.lines dd{margin:0;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
@media(max-width:36rem){.lines{grid-template-columns:1fr;gap:0}.lines dd{margin-bottom:.5rem}}
.wide{overflow-x:auto;margin:1rem 0 1.6rem}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding:0 0 .35rem}
th,td{padding:.28rem .9rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th:first-child,td:first-child{padding-left:.4rem}
th{color:var(--soft);font-weight:600;border-bottom-width:2px;vertical-align:bottom}
td:first-child{min-width:9rem}.n{text-align:right}td.n{white-space:nowrap}tr.end td{border-bottom:2px solid var(--soft)}
tbody tr:hover{background:var(--card)}tr.marked,tr.marked:hover{background:var(--mark);font-weight:600}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:1.2rem;margin:1.2rem 0}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:.6rem;overflow:hidden;
box-shadow:var(--shade);break-inside:avoid;align-self:start}
figure:only-child{max-width:52rem}figure.wide-figure{grid-column:1/-1;max-width:none}
figure img{display:block;width:100%;height:auto;background:#fff;padding:.5rem}
figcaption{padding:.6rem 1rem .8rem;font-size:.88rem;border-top:1px solid var(--line)}
figcaption b{display:block}
.tinted{font:.95rem/1.9 ui-monospace,SFMono-Regular,Menlo,monospace;white-space:pre-wrap;overflow-wrap:anywhere;
max-width:none;border:1px solid var(--line);border-radius:.6rem;padding:1rem 1.2rem;background:var(--card)}
.tinted b,.tinted span,.legend span{padding:.12em 0;border-radius:.15em}
.tinted b{font-weight:800;text-decoration:underline;text-underline-offset:.25em}
.legend span{padding:.1em .6em;margin-right:.25em;font-size:.85rem}
details{margin:1rem 0}summary{cursor:pointer;color:var(--accent)}
pre{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:1rem;overflow-x:auto;
font-size:.82rem}
footer{margin-top:4rem;border-top:1px solid var(--line);padding-top:1rem;color:var(--soft);font-size:.82rem;
overflow-wrap:anywhere}
@media print{nav{display:none}main{max-width:none;padding:0}}
"""


def style(max_passes: int) -> str:
    """The page's CSS, with a class d1, ..., dK for each depth."""
    depths = range(1, max_passes + 1)
    return _STYLE.strip() + "".join(
        f"\n.d{depth}{{background:{tint(depth, max_passes)};color:{letters_on(depth, max_passes)}}}" for depth in depths
    )
