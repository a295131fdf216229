"""The study's page and table: whole and least records, escaped, aligned, on a scale that fits."""

import copy
import json
import re
from xml.etree import ElementTree

import pytest
import study_document

from curvedit.study import page, page_figures, page_map, table, words
from curvedit.study.reading import HELD_OUT, read_arms, read_metrics

SECTIONS = [
    "Goals",
    "Edits",
    "Price beside the best control",
    "Forgetting against price",
    "Strengths tried",
    "Where it is stored",
    "Tasks",
    "Does it last?",
    "Perplexity by domain",
    "How it was made",
    "What this does not show",
]


@pytest.fixture
def document():
    # As it comes from a file, so that nothing but JSON is relied on.
    return json.loads(json.dumps(study_document.full()))


def parsed(rendered):
    return ElementTree.fromstring(rendered.removeprefix("<!DOCTYPE html>"))


def text_of(rendered):
    return " ".join(parsed(rendered).itertext()).replace("\u00a0", " ")


def headings(rendered):
    return [node.text for node in parsed(rendered).iter("h2")]


def cells(rendered, name):
    """The texts of the row of the main table whose first cell begins with a name."""
    rows = [row for row in parsed(rendered).iter("tr") if row.find("td") is not None]
    return next(
        ["".join(cell.itertext()) for cell in row]
        for row in rows
        if "".join(row.find("td").itertext()).startswith(name) and len(row) > 5
    )


def test_page_has_all_sections_in_a_readers_order(document):
    assert headings(page.render(document)) == SECTIONS


def test_page_is_well_formed_and_loads_nothing(document):
    rendered = page.render(document)
    assert not re.search(r"https?://|url\(|@import|<script|<link|<img", rendered)
    body = rendered.split("</style>")[1]
    assert not re.search(r"\bnan\b|\binf\b|None", body)
    places, criteria, maps, texts, contrasts = 3, 5, 4, 2, 9
    strokes = 3 + 2 + 3  # of the legends: places, amounts of text, models that learn again
    drawings = places + criteria + maps + texts + contrasts + strokes
    assert sum(node.tag == "svg" for node in parsed(rendered).iter()) == drawings


def test_least_record_has_no_holes():
    rendered = page.render(study_document.minimal())
    assert headings(rendered) == ["Edits", "How it was made", "What this does not show"]
    assert "no edit has been compared" in text_of(rendered)
    assert "<svg" not in rendered


@pytest.mark.parametrize(
    ("part", "section"),
    [
        ("map", "Where it is stored"),
        ("tasks", "Tasks"),
        ("audit", "Does it last?"),
        ("goals", "Goals"),
        ("contrasts", "Price beside the best control"),
    ],
)
def test_a_part_that_is_missing_takes_its_section_along(document, part, section):
    del document[part]
    assert headings(page.render(document)) == [name for name in SECTIONS if name != section]


@pytest.mark.parametrize("part", ["rounding", "relearning", "prompts"])
def test_an_audit_may_be_partial(document, part):
    word = {"rounding": "Rounded", "relearning": "Relearning:", "prompts": "Other prompts:"}
    assert word[part] in text_of(page.render(document))
    del document["audit"][part]
    found = text_of(page.render(document))
    assert "Does it last?" in found
    assert word[part] not in found


def hostile(value, mark="<b>&\"'"):
    """The same record with markup in every text and in every free name."""
    kept = {"format", "criterion", "arm", "control", "place"}
    if isinstance(value, dict):
        free = {"tasks", "prompts", "predictors", "text", "settings", "tool", "seconds"}
        return {
            key: each
            if key in kept
            else {f"{name}{mark}": hostile(one) for name, one in each.items()}
            if key in free
            else hostile(each)
            for key, each in value.items()
        }
    if isinstance(value, list):
        return [hostile(each) for each in value]
    return value + mark if isinstance(value, str) else value


def test_texts_are_escaped(document):
    rendered = page.render(hostile(document))
    assert "<b>" not in rendered
    assert "<b>&\"'" in text_of(rendered)
    for criterion in ("arm", "place", "criterion"):
        for each in document["arms"] + document["contrasts"]:
            if criterion in each:
                each[criterion] = f"<i>{each[criterion]}"
    assert "<i>" not in page.render(document)


def test_main_table_shows_the_paired_change_of_perplexity(document):
    arm = next(each for each in document["arms"] if each["name"] == "random, late")
    document["before"]["perplexity"]["value"] = 10.0
    arm["differences"]["perplexity"] = {"value": 2.5, "low": 2.0, "high": 3.0}
    document["arms"] = [arm]
    row = cells(page.render(document), "random")
    assert "+25.0 %[+20.0, +30.0]" in row
    assert "+25.0 [+20.0, +30.0]" in table.render(document)


def test_an_arm_that_was_not_matched_is_named(document):
    assert "not comparable in price: svd, late." in text_of(page.render(document))
    lines = table.render(document).splitlines()
    assert [line.split("  ")[0] for line in lines[:-2] if " *  " in line] == ["svd, late *"]


def test_numbers_that_are_not_finite_are_left_out(document):
    for arm in document["arms"]:
        arm["metrics"]["kl"] = {"value": float("nan"), "low": 0.0, "high": 1.0}
        arm["change"] = float("inf")
        arm["strength"] = None
    document["map"]["label_free"]["kl"][0][0] = 0.0
    document["map"]["targeted"]["forgotten"][0][0] = None
    document["contrasts"][0]["ratio"] = None
    document["goals"][0] |= {"figure": None, "met": None}
    body = page.render(document).split("</style>")[1]
    assert not re.search(r"\bnan\b|\binf\b|None", body)
    assert "KL divergence" not in body
    assert not re.search(r"\bnan\b|\binf\b", table.render(document))
    assert "open    named passages" in table.render(document)


def test_prices_fall_back_to_kl_where_perplexity_fell(document):
    arms = read_arms(document)
    assert page_figures.price_of(read_metrics(document["before"]), arms).percent
    document["arms"][0]["differences"]["perplexity"] = {"value": -0.1, "low": -0.2, "high": 0.1}
    price = page_figures.price_of(read_metrics(document["before"]), read_arms(document))
    assert price.label.startswith("KL")
    assert "KL divergence, nats" in text_of(page.render(document))


def test_the_map_divides_by_the_root_of_kl_and_marks_the_proposed_layers():
    grid = page_map.worth([[0.2, 0.1], [0.3, None]], [[0.01, 0.0], [0.01, 0.1]])
    assert grid[0] == [2.0, None]
    assert grid[1] == [pytest.approx(3.0), None]
    drawn = page_map.heat(grid, [4, 5], ["up_proj", "down_proj"], {5}, "label")
    assert drawn.count("#c0392b") == 1
    assert "3.00" in drawn
    assert page_map.shade(1.0) == "#0f766e"


@pytest.mark.parametrize("layers", [1, 28, 96])
@pytest.mark.parametrize("kinds", [1, 3, 7])
def test_maps_of_any_size_fit_a_card(layers, kinds):
    grid = [[1e-7 * (layer + kind) for kind in range(kinds)] for layer in range(layers)]
    drawn = page_map.heat(grid, range(layers), [f"k{n}" for n in range(kinds)], set(), "label")
    width, height = map(float, re.search(r'viewBox="0 0 (\S+) (\S+)"', drawn).groups())
    assert width == 318
    assert height < 760
    assert drawn.count("<rect") >= layers * kinds


@pytest.mark.parametrize(("low", "high"), [(0.01, 0.012), (0.02, 0.5), (1e-6, 10.0), (3.0, 9.0)])
def test_ticks_of_a_logarithmic_axis_are_few_and_within(low, high):
    ticks = page_figures.round_values(low, high)
    assert 1 <= len(ticks) <= 5
    assert all(low <= tick <= high for tick in ticks)


def test_the_finding_counts_contrasts_by_their_intervals(document):
    said = words.finding(document)
    assert "less than the best control in 6 of 9 comparisons (3 undecided)" in said
    assert "from 63.4 % to 1.4 % on the passages it was given" in said
    document["contrasts"] = document["contrasts"][:1]
    assert words.finding(document).startswith("Set to lose 33.3 % of the tokens right, curvature ")
    document["contrasts"] = []
    document["arms"] = [each for each in document["arms"] if each["criterion"] != "targeted"]
    best = min(document["arms"], key=lambda each: each["metrics"][HELD_OUT]["value"])
    assert words.finding(document).startswith(f"{best['name'].capitalize()} left the fewest")


def test_the_limits_count_passages_and_seeds(document):
    said = " ".join(words.limits(document))
    assert "tuned on, 60 passages, 18 sources; same sources, 15 passages, 12 sources; held" in said
    assert "One seed (0)" in said
    document["settings"]["seed"] = [0, 1, 2]
    assert "seed" not in " ".join(words.limits(document)).split("Tokens right")[0]


def test_table_is_aligned_and_fits_the_terminal(document):
    document["arms"][3] |= {"name": "a name that is far too long " * 5, "matched": False}
    lines = table.render(document).splitlines()
    assert max(map(len, lines)) <= 120
    rule = next(place for place, line in enumerate(lines) if set(line) == {"-"})
    rows = lines[rule + 1 : rule + 2 + len(document["arms"])]
    assert rows[0].startswith("unedited")
    assert re.match(r"a name .*… \*  ", rows[4])
    assert {len(row) for row in rows if not row.endswith("-")} == {len(lines[rule])}
    column = lines[rule - 1].index("held out") + len("held out")
    assert {row[column - 1] for row in rows} == {"]"}


def test_table_of_the_least_record():
    lines = table.render(study_document.minimal()).splitlines()
    assert lines[0] == "Llama: edits compared"
    assert "unedited    50.0 %" in lines


def test_rendering_leaves_the_record_as_it_is(document):
    kept = copy.deepcopy(document)
    page.render(document)
    table.render(document)
    assert document == kept
