"""The colours and the style sheet of the page."""

BEFORE = "#8b93a3"
AFTER = "#0f766e"
CONTROLS = ("#c2740c", "#7c5cbf", "#b4446c", "#4a7db5", "#71803a")
INK = "#1d2329"
MUTED = "#68707c"
HAIR = "#e3e1db"
CUT = "#c0392b"

CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f7f6f2; color: #1d2329; line-height: 1.5; font-size: 15px;
  font-family: "Inter", "Helvetica Neue", "Segoe UI", "Liberation Sans", Arial, sans-serif;
  font-variant-numeric: tabular-nums; }
main { max-width: 1080px; margin: 0 auto; padding: 44px 28px 72px; }
header { margin-bottom: 30px; }
.kicker { color: #0f766e; font-weight: 600; font-size: 12.5px; letter-spacing: .08em;
  text-transform: uppercase; }
h1 { font-size: 31px; line-height: 1.2; letter-spacing: -.015em; margin: 6px 0 10px;
  font-weight: 650; }
h2 { font-size: 19px; letter-spacing: -.005em; margin: 46px 0 4px; font-weight: 650; }
p { margin: 6px 0 0; max-width: 46em; }
.lead { font-size: 17px; color: #333b45; }
.sub, .note { color: #68707c; font-size: 13.5px; }
.note { margin-top: 10px; }
section > .sub { margin-bottom: 14px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr));
  gap: 14px; margin-top: 26px; }
.tile, .card, .sheet { background: #fff; border: 1px solid #e3e1db; border-radius: 10px; }
.tile { padding: 15px 18px 14px; }
.tile .name { font-size: 13px; color: #68707c; }
.tile .big { font-size: 29px; font-weight: 650; letter-spacing: -.02em;
  line-height: 1.25; color: #0f766e; }
.tile .big.plain { color: #1d2329; }
.tile .from { font-size: 13px; color: #68707c; }
.sheet { padding: 6px 18px 10px; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; font-weight: 600; color: #68707c; font-size: 12.5px; padding: 9px 14px 7px 0;
  white-space: nowrap; }
td { padding: 8px 14px 8px 0; border-top: 1px solid #eeece6; vertical-align: baseline; }
td.number, th.number { text-align: right; }
td:last-child, th:last-child { padding-right: 0; }
td .interval { display: block; color: #68707c; font-size: 12px; white-space: nowrap; }
td .what { display: block; color: #68707c; font-size: 12px; max-width: 25em; }
td .value { font-weight: 600; white-space: nowrap; }
.after .value { color: #0f766e; }
.swatch { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 7px; }
code, .mono { font-family: "JetBrains Mono", "SFMono-Regular", Menlo, Consolas,
  "Liberation Mono", monospace;
  font-size: .88em; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(318px, 1fr)); gap: 14px; }
.panels.two { grid-template-columns: repeat(auto-fill, minmax(488px, 1fr)); }
.card { padding: 14px 16px 12px; min-width: 0; }
.card h3 { margin: 0; font-size: 14px; font-weight: 600; overflow-wrap: anywhere; }
.card .sub { font-size: 12.5px; }
.card svg { display: block; width: 100%; height: auto; margin-top: 6px; }
.pair { display: grid; grid-template-columns: 5fr 4fr; gap: 12px; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr));
  gap: 14px; align-items: start; }
.columns h3 { margin: 10px 0 2px; font-size: 14px; font-weight: 600; }
td.key { color: #68707c; white-space: nowrap; width: 1%; padding-right: 22px; }
td.text { overflow-wrap: anywhere; }
.bar { background: #d7e8e5; height: 9px; border-radius: 4px; min-width: 2px; margin-top: 6px; }
ul { margin: 8px 0 0; padding-left: 20px; max-width: 50em; } li { margin: 5px 0; }
.warnings { border-left: 4px solid #c2740c; background: #fdf6ea; padding: 10px 16px 12px;
  border-radius: 6px; margin-top: 22px; }
.warnings strong { color: #8a5208; }
footer { margin-top: 50px; color: #68707c; font-size: 12.5px;
  border-top: 1px solid #e3e1db; padding-top: 12px; }
svg text { font-family: inherit; font-size: 11px; fill: #68707c;
  font-variant-numeric: tabular-nums; }
svg text.strong { fill: #1d2329; font-weight: 600; }
@media print { body { background: #fff; } .card, .tile, .sheet { break-inside: avoid; } }
@media (max-width: 560px) {
  .panels, .panels.two, .columns, .pair { grid-template-columns: 1fr; }
  td .what { min-width: 11em; }
}
"""
