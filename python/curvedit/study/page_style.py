"""What the study's page adds to the style sheet of reports."""

CSS = """
main { max-width: 1180px; }
header .sub, section > .sub { max-width: 58em; }
td.name { min-width: 13em; padding-left: 18px; text-indent: -18px; }
td.name .swatch { margin-right: 9px; text-indent: 0; }
td.name .what { text-indent: 0; max-width: 30em; }
.swatch { box-sizing: border-box; }
table.wide th, table.wide td { padding-right: 16px; }
table.wide th:last-child, table.wide td:last-child { padding-right: 0; }
table.wide thead tr:first-child th { padding-bottom: 0; color: #1d2329; }
table.wide thead tr:only-child th { padding-bottom: 7px; color: #68707c; }
th.span { border-bottom: 1px solid #eeece6; }
tr.unedited td { background: #faf9f6; }
tr.place td { padding: 16px 0 5px; font-weight: 650; border-top: 0; }
tr.place + tr td { border-top: 1px solid #d8d5cd; }
tr.place span { position: sticky; left: 0; }
td.ratio { white-space: nowrap; }
td .beside { color: #68707c; font-size: 12px; white-space: nowrap; }
table.dense td { padding-top: 6px; padding-bottom: 6px; }
table.dense td .interval { display: inline-block; min-width: 8.8em; }
td.strip { width: 1%; padding-top: 0; padding-bottom: 0; vertical-align: middle; }
td.strip svg { display: block; width: 220px; height: 22px; }
th.strip { text-align: center; }
td.verdict { width: 1%; }
td.goal { min-width: 15em; }
.pill { display: inline-block; min-width: 58px; text-align: center; padding: 1px 9px;
  border-radius: 10px; font-size: 12px; font-weight: 600; }
.pill.met { background: #d7e8e5; color: #0b5a54; }
.pill.missed { background: #f8e1dd; color: #98291c; }
.pill.open { background: #eeece6; color: #68707c; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 0 0 12px; font-size: 13px;
  color: #333b45; max-width: none; }
.legend span { white-space: nowrap; }
.legend span .swatch { margin-right: 7px; }
svg.stroke { width: 22px; height: 10px; margin-right: 7px; }
section h3.part { font-size: 14.5px; font-weight: 600; margin: 24px 0 8px; }
.card { break-inside: avoid; }
@media (max-width: 560px) {
  main { padding: 28px 16px 56px; }
  h1 { font-size: 25px; overflow-wrap: anywhere; }
  td.name { min-width: 10em; max-width: 10em; }
  table.wide td.name, table.wide th:first-child { position: sticky; left: -18px; z-index: 1;
    background: #fff; }
  table.wide td.name { padding-left: 24px; }
  table.wide th:first-child { padding-left: 6px; }
  td.name .what { min-width: 0; }
  td.goal + td + td { min-width: 12em; }
  td.predictor { min-width: 10em; }
  tr.unedited td.name { background: #faf9f6; }
}
"""
