"""Report sections, cleaning, and the way back to the raw characters."""

from __future__ import annotations

import csv
import os
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aga.data.reports import ParsedReport, ReportConfig, parse_report, report_problem


def config(*sections: str, fallback: str = "whole", least: int = 1) -> ReportConfig:
    return ReportConfig.model_validate(
        {"sections": sections, "fallback": fallback, "min_characters": least}
    )


BOTH = config("findings", "impression")


def text_of(raw: str, settings: ReportConfig = BOTH) -> tuple[str, str]:
    parsed = parse_report(raw, settings)
    return parsed.text, parsed.section


def test_sections_come_in_the_configured_order() -> None:
    raw = "INDICATION: Cough.\nFINDINGS: Clear lungs.\nIMPRESSION: Normal.\n"
    assert text_of(raw) == ("Clear lungs. Normal.", "findings+impression")
    reverse = config("impression", "findings")
    assert text_of(raw, reverse) == ("Normal. Clear lungs.", "impression+findings")
    assert text_of(raw, config("impression")) == ("Normal.", "impression")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("findings: a b\nimpression: c d", "a b c d"),
        ("  Findings :\n a b\n\nIMPRESSION\n c d", "a b c d"),
        ("COMPARISON: None. FINDINGS: a b. IMPRESSION: c d.", "a b. c d."),
        ("**FINDINGS:** a b\n**CONCLUSION:** c d", "a b c d"),
        ("FINDINGS AND IMPRESSION: a b", "a b"),
        ("FINDINGS: a b\nADDENDUM: x\nFINDINGS: c d\nNOTIFICATION: y", "a b c d"),
        ("FINDINGS:\nIMPRESSION: c d", "c d"),
        ("FINDINGS: heart\nLUNGS: clear", "heart LUNGS: clear"),
        ("FINDINGS: there are no acute\nfindings", "there are no acute findings"),
        ("FINDINGS: the main findings: none", "the main findings: none"),
    ],
)
def test_headings_are_found_where_they_stand_as_headings(raw: str, expected: str) -> None:
    assert text_of(raw)[0] == expected


def test_other_languages_name_their_own_headings() -> None:
    raw = "Klinik: Husten.\nBefund: Keine Infiltrate.\nBeurteilung: Unauffällig."
    assert text_of(raw, config("befund", "beurteilung"))[0] == "Keine Infiltrate. Unauffällig."
    assert text_of("胸部正面像。浸潤影なし。") == ("胸部正面像。浸潤影なし。", "whole")


def test_fallback() -> None:
    raw = "Patchy opacity in the left base."
    assert text_of(raw) == (raw, "whole")
    strict = config("findings", fallback="reject")
    assert text_of(raw, strict) == ("", "")
    assert problem(raw, strict) == "section missing"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("seen by Dr. ___ on ___ .", "seen by Dr. on."),
        ("compared to XXXX, stable", "compared to, stable"),
        ("Clear. XXXX. Stable at 4XXXX.", "Clear. Stable at 4."),
        ("XXXX. Heart", "Heart"),
        ("XXXX-year-old XXXX.", "-year-old."),
        ("on [** 2020-1-1 **] stable", "on stable"),
        ("  a \t b\r\n\n c  ", "a b c"),
        (
            "1. No effusion.\n2. Clear lungs. 3. Heart of 1.5 cm",
            "No effusion. Clear lungs. Heart of 1.5 cm",
        ),
        ("a\ufeffb so\u00adft l\ufffdst", "ab soft lst"),
        ("level L 1. The heart", "level L 1. The heart"),
        ("size .5 cm", "size .5 cm"),
        ("prior XXXXbilateral", "prior bilateral"),
    ],
)
def test_cleaning(raw: str, expected: str) -> None:
    assert text_of(raw)[0] == expected


def problem(raw: str, settings: ReportConfig) -> str | None:
    found = report_problem(raw, parse_report(raw, settings), settings)
    return None if found is None else found[0]


def test_problems() -> None:
    assert problem("", BOTH) == "report empty"
    assert problem(" \n ___ XXXX ", BOTH) == "report empty"
    assert problem("FINDINGS: ___\nIMPRESSION:", BOTH) == "report empty"
    assert problem("short", config("findings", least=6)) == "report too short"
    assert problem("longer", config("findings", least=6)) is None


def assert_traceable(raw: str, parsed: ParsedReport) -> None:
    assert len(parsed.offsets) == len(parsed.text)
    for character, offset in zip(parsed.text, parsed.offsets, strict=True):
        assert character == " " or raw[offset] == character
    assert "  " not in parsed.text
    assert parsed.text == parsed.text.strip()


PIECES = st.sampled_from(
    [
        *(
            "FINDINGS:",
            "Impression:\n",
            "INDICATION: ",
            "\n",
            ". ",
            " ",
            "___",
            "XXXX",
            "1. ",
            "word",
        ),
        *("\ufeff", "é", "肺", "\x00", " .", ",", "\u2028", "[** x **]", "- "),
    ]
)


RAW = st.lists(PIECES | st.text(max_size=5), max_size=25).map("".join)


@given(RAW)
def test_every_character_is_traced_to_the_raw_report(raw: str) -> None:
    assert_traceable(raw, parse_report(raw, BOTH))


@given(RAW)
def test_a_whole_report_keeps_its_order_and_its_letters(raw: str) -> None:
    parsed = parse_report(f"Start {raw}", config("nosuchheading"))
    assert parsed.section == "whole"
    assert all(before < after for before, after in pairwise(parsed.offsets.tolist()))
    without_marks = re.sub(r"X{4,}|\[\*\*.*?\*\*\]", "", raw, flags=re.DOTALL)
    assert [c for c in parsed.text[5:] if c.isalpha()] == [c for c in without_marks if c.isalpha()]


@pytest.mark.realdata
def test_indiana_reports_parse_without_marks() -> None:
    table = Path(os.environ["AGA_REALDATA"]) / "iu_xray" / "indiana_reports.csv"
    sections = 0
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            raw = f"INDICATION: {row['indication']}\nFINDINGS: {row['findings']}\n"
            raw += f"IMPRESSION: {row['impression']}"
            parsed = parse_report(raw, config("findings", "impression", fallback="reject"))
            assert_traceable(raw, parsed)
            if "XXXX" in parsed.text:
                pytest.fail(f"a mark is left in uid {row['uid']}")
            sections += bool(row["findings"].strip()) + bool(row["impression"].strip())
            sections -= len(parsed.section.split("+")) if parsed.section else 0
    assert sections <= 10  # a few hold nothing but marks
