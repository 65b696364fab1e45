"""Report sections, cleaning, and the way back to the raw characters."""

from __future__ import annotations

import csv
import os
import re
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from aga.data.schema import Study
from aga.data.sources.covid_chestxray import CovidChestxray, CovidChestxrayConfig
from aga.data.text.cleaning import DEID
from aga.data.text.reports import ParsedReport, ReportConfig, parse_report, report_problem
from aga.data.text.sentences import sentence_spans

SECTIONS = ("findings", "impression")
TOLD = ("notification", "attestation")


def config(
    *prefer: str, deidentified: str = "drop", drop: tuple[str, ...] = TOLD, least: int = 1
) -> ReportConfig:
    return ReportConfig.model_validate(
        {
            "prefer": prefer,
            "deidentified": deidentified,
            "drop_sentences": drop,
            "min_characters": least,
        }
    )


BOTH = config("findings+impression", "findings", "impression", "whole")
MIMIC = config("findings+impression", "impression", "last_paragraph", "whole")


def text_of(raw: str, settings: ReportConfig = BOTH) -> tuple[str, str]:
    parsed = parse_report(raw, settings)
    return parsed.text, parsed.section


def test_the_first_preference_that_a_report_meets_is_used() -> None:
    raw = "INDICATION: Cough.\nFINDINGS: Clear lungs.\nIMPRESSION: Normal.\n"
    assert text_of(raw) == ("Clear lungs. Normal.", "findings+impression")
    reverse = config("impression+findings", "whole")
    assert text_of(raw, reverse) == ("Normal. Clear lungs.", "impression+findings")
    assert text_of(raw, config("impression", "findings")) == ("Normal.", "impression")
    assert text_of(raw, config("findings+technique", "indication")) == ("Cough.", "indication")
    assert text_of("IMPRESSION: Normal.") == ("Normal.", "impression")
    assert text_of("FINDINGS: ___ .\nIMPRESSION: Normal.") == ("Normal.", "impression")


@pytest.mark.parametrize(
    ("prefer", "problem"),
    [
        ([], "at least 1"),
        (["findings+"], "joined by"),
        (["findings+findings"], "each once"),
        (["whole+findings"], "stand alone"),
        (["whole", "findings"], "nothing after `whole`"),
        (["findings", "findings"], "nothing twice"),
        (["history"], "is called 'indication'"),
        (["Conclusion"], "is called 'impression'"),
    ],
)
def test_preferences_that_make_no_sense_are_refused(prefer: list[str], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        config(*prefer)
    with pytest.raises(ValidationError, match="blank phrase"):
        config("whole", drop=(" ",))


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("findings: a b\nimpression: c d", "a b. c d"),
        ("  Findings :\n a b\n\nIMPRESSION\n c d", "a b. c d"),
        ("COMPARISON: None. FINDINGS: a b. IMPRESSION: c d.", "a b. c d."),
        ("**FINDINGS:** a b\n**CONCLUSION:** c d", "a b. c d"),
        ("FINDINGS AND IMPRESSION: a b", "a b"),
        ("FINDINGS/IMPRESSION: a b", "a b"),
        ("FINDINGS / IMPRESSION:\r\n a b", "a b"),
        ("FINDINGS: a b\nADDENDUM: x\nFINDINGS: c d\nNOTIFICATION: y", "a b. c d"),
        ("FINDINGS:\nIMPRESSION: c d", "c d"),
        ("FINDINGS: heart\nLUNGS: clear", "heart LUNGS: clear"),
        ("FINDINGS: there are no acute\nfindings", "there are no acute findings"),
        ("FINDINGS: the main findings: none", "the main findings: none"),
        ("HISTORY: Cough\nFINDINGS Lungs are clear\nIMPRESSION Normal", "Lungs are clear. Normal"),
        ("Findings Suggest edema", "Findings Suggest edema"),
        ("IMPRESSION - Normal", "Normal"),
        ("IMPRESSION (preliminary): Normal", "Normal"),
        ("INDICATION: Cough\nCHEST, PA AND LATERAL:  Clear.\nIMPRESSION: Normal", "Clear. Normal"),
        ("PORTABLE AP CHEST RADIOGRAPH:\nClear", "Clear"),
        ("AP CHEST, 5:14 A.M., ___\nIMPRESSION: Normal", "Normal"),
        ("WET READ: ___ 10:03 PM\n Wet.\n____________\nFINAL REPORT\nIMPRESSION: 1. Dry", "Dry"),
        ("所见：双肺清晰。FINDINGS：a。IMPRESSION：b", "a。 b"),  # noqa: RUF001
    ],
)  # fmt: skip
def test_headings_are_found_where_they_stand_as_headings(raw: str, expected: str) -> None:
    assert text_of(raw)[0] == expected


def test_other_languages_name_their_own_headings() -> None:
    raw = "Klinik: Husten.\nBefund: Keine Infiltrate.\nBeurteilung: Unauffällig."
    own = config("befund+beurteilung")
    assert text_of(raw, own) == ("Keine Infiltrate. Unauffällig.", "befund+beurteilung")
    chinese = "检查所见：1、胃窦溃疡2、胃体正常\n诊断意见：胃溃疡"  # noqa: RUF001
    assert text_of(chinese, config("检查所见+诊断意见"))[0] == "胃窦溃疡2、胃体正常。 胃溃疡"
    assert text_of("胸部正面像。浸潤影なし。") == ("胸部正面像。浸潤影なし。", "whole")


ADDENDED = """                             FINAL REPORT
 ADDENDUM:  The tube is in the stomach.

 IMPRESSION:  Tube in place
______________________________________________________________________________
                                 FINAL REPORT
 REASON FOR EXAM:  ___ year old man with a tube.

 AP view of the chest.

 Lungs are
 clear.

 IMPRESSION:  1. No pneumothorax
   2. Small effusion
"""


def test_sections_of_a_report_with_an_addendum() -> None:
    """The addendum's impression stands first, as it does on the page."""
    assert text_of(ADDENDED, config("impression")) == (
        "Tube in place. No pneumothorax. Small effusion",
        "impression",
    )
    assert text_of(ADDENDED, config("addendum"))[0] == "The tube is in the stomach."
    assert text_of(ADDENDED, config("last_paragraph"))[0] == "Lungs are clear."
    assert text_of(ADDENDED, config("technique", "comparison")) == ("", "")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("Reviewed.\n \nClear lungs.\n", "Clear lungs."),
        ("INDICATION: Cough\n\nOld film.\n\nClear.\n\nCOMPARISON: None", "Clear."),
        ("Clear lungs.", "Clear lungs."),
        ("WET READ: x\n\nWet.\n", ""),
        ("INDICATION: Cough", ""),
    ],
)
def test_the_last_paragraph_is_under_no_heading(raw: str, expected: str) -> None:
    assert text_of(raw, config("last_paragraph"))[0] == expected


def test_without_any_preference_a_row_is_rejected() -> None:
    raw = "Patchy opacity in the left base."
    assert text_of(raw) == (raw, "whole")
    strict = config("findings")
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
        ("1. No effusion\n 2) Clear lungs\n\n  - heart", "No effusion. Clear lungs. heart"),
        ("Clear.\n3.Chronic changes of\n1.5 cm", "Clear. Chronic changes of 1.5 cm"),
        ("Normal heart\n\nClear lungs\n\nand so on", "Normal heart. Clear lungs and so on"),
        ("1、胃窦溃疡\n2、胃体正常。3、食管", "胃窦溃疡。 胃体正常。 食管"),
        ("a\ufeffb so\u00adft l\ufffdst", "ab soft lst"),
        ("level L 1. The heart", "level L 1. The heart"),
        ("size .5 cm", "size .5 cm"),
        ("prior XXXXbilateral", "prior bilateral"),
        ("Wet\n____________________\nDry", "Wet Dry"),
    ],
)
def test_cleaning(raw: str, expected: str) -> None:
    assert text_of(raw)[0] == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("seen by Dr. ___ ___ on ___ .", "seen by Dr. [DEID] on [DEID]."),
        ("XXXX. Heart at 4XXXXbilateral", "[DEID]. Heart at 4[DEID]bilateral"),
        ("on [** 2020-1-1 **] [DEID]\nstable", "on [DEID] stable"),
        ("Wet\n____________________\nDry ___", "Wet Dry [DEID]"),
    ],
)
def test_a_mark_stands_for_each_stretch_of_deidentified_text(raw: str, expected: str) -> None:
    settings = config("whole", deidentified="token")
    parsed = parse_report(raw, settings)
    assert parsed.text == expected
    assert_traceable(raw, parsed)
    assert problem("IMPRESSION: ___ . XXXX", settings) == "report empty"


NOTIFICATIONS = """
Findings were discussed with Dr. ___ by telephone at 9:30 a.m. on ___.
Dr. XXXX was paged at 3 p.m.
These results were communicated to the referring physician.
Critical result notification documented through Primordial.
The above findings and recommendations were discussed XXXX.
Results called XXXX.
XXXX notified of the critical results by telephone and acknowledged receipt of these results.
""".strip().splitlines()  # fmt: skip
ATTESTATIONS = """
I have personally reviewed the images for this examination and agree with the report.
I, the teaching physician, have reviewed the images.
Electronically signed by Dr. ___.
Dictated by: resident.
This report was created with voice recognition software.
""".strip().splitlines()
ABOUT_THE_IMAGE = """
No pneumothorax.
There is an electronic cardiac device overlying the left chest wall.
Abnormal appearance of the mediastinum as discussed below.
The findings are discussed above.
The cavity communicated with a bronchus.
The trial was approved by the review board.
This was reported as a nodule on the prior CT.
A CT of the lumbar spine was already ordered at the time of this dictation.
Stage I disease, reviewed images show no change.
""".strip().splitlines()


def test_sentences_about_the_reporting_are_left_out_and_counted() -> None:
    lines = [*ABOUT_THE_IMAGE, *NOTIFICATIONS, *ATTESTATIONS]
    raw = "FINDINGS: " + " ".join(lines)
    parsed = parse_report(raw, config("findings", deidentified="token"))
    assert parsed.text == " ".join(ABOUT_THE_IMAGE)
    assert parsed.dropped == {
        "notification": len(NOTIFICATIONS),
        "attestation": len(ATTESTATIONS),
    }
    assert_traceable(raw, parsed)
    everything = parse_report(raw, config("findings", deidentified="token", drop=()))
    assert "voice recognition" in everything.text
    assert not everything.dropped


# What a sentence says of the image, and how it goes on about the telling.
SAID_AND_TOLD = {
    "Large pneumothorax": ", discussed with Dr X at 3 pm.",
    "Large right pneumothorax": "; findings were discussed with Dr. Lee by telephone at 3:15 pm.",
    "New left lower lobe consolidation": " was discussed with Dr. [DEID] by phone at 10 am.",
    "Endotracheal tube in the right main bronchus": ", Dr. Lee was paged at 4 pm.",
    "There is a moderate effusion": " and this was communicated to the ICU team.",
    "Interval increase in pneumothorax": " (discussed with Dr. Jones).",
    "Findings of free air under the diaphragm": " were discussed with Dr. X at 3 pm.",
    "The tip of the line is in the right atrium": " - Dr. Lee of surgery was notified.",
    "Widened mediastinum": ", which was then verbally communicated to the referring physician.",
    "No pneumothorax": ", results called to the ED.",
    "Small apical pneumothorax": " and Dr. X was notified.",
    "8 mm nodule in the left upper lobe": ", findings conveyed by telephone.",
}
TOLD_BEFORE_IT_IS_SAID = """
As discussed with Dr. X, there is a large pneumothorax.
Discussed with Dr. X at 3 pm: tension pneumothorax.
Dr. X was notified of the new pneumothorax at 3 pm.
""".strip().splitlines()
ONLY_TOLD = """
Dr. Lee was notified at 3:15 pm by telephone, 5 minutes after discovery of the findings.
Dr. Jones, orthopedics, was paged at 3 pm.
Dr. Jones from the surgical service was notified at 4 pm.
At 3:15 pm on Tuesday, the findings were discussed with Dr. Jane Lee in person.
Critical results were communicated to the clinical team by Dr. X at the time of interpretation.
Findings will be conveyed to the ordering physician by the alert system.
The orthopedic team was notified of the findings at 3 pm.
Results called to Dr. Lee, who acknowledged receipt, at 9 am.
These findings were relayed by Dr. X to Dr. Y via telephone on [DEID].
This was discussed with Dr. X; read back was confirmed.
Findings reported to [DEID], RN, on the floor at 5 pm.
Dr. Lee and Dr. Jones were notified of these results.
Recommendation for followup CT was discussed with Dr. Lee.
Preliminary findings were reviewed with Dr. Lee, the surgical resident, at 8 pm.
""".strip().splitlines()


@pytest.mark.parametrize("said", SAID_AND_TOLD)
def test_a_finding_stays_where_its_sentence_goes_on_about_the_telling(said: str) -> None:
    raw = f"FINDINGS: Clear. {said}{SAID_AND_TOLD[said]} Old ribs."
    parsed = parse_report(raw, config("findings", deidentified="token"))
    assert parsed.text == f"Clear. {said}. Old ribs."
    assert parsed.dropped == {"notification": 1}
    assert_traceable(raw, parsed)


@pytest.mark.parametrize("sentence", TOLD_BEFORE_IT_IS_SAID)
def test_a_notification_that_tells_the_finding_is_kept_whole(sentence: str) -> None:
    parsed = parse_report(f"FINDINGS: Clear. {sentence}", config("findings"))
    assert parsed.text == f"Clear. {sentence}"
    assert not parsed.dropped


@pytest.mark.parametrize("sentence", ONLY_TOLD)
def test_a_sentence_that_only_tells_who_was_told_is_left_out(sentence: str) -> None:
    raw = f"FINDINGS: Clear. {sentence} Old ribs."
    parsed = parse_report(raw, config("findings", deidentified="token"))
    assert (parsed.text, parsed.dropped) == ("Clear. Old ribs.", {"notification": 1})


def test_own_phrases_are_left_out() -> None:
    own = config("whole", drop=("no change",))
    parsed = parse_report("Edema. There is NO CHANGE since May. Effusion.", own)
    assert (parsed.text, parsed.dropped) == ("Edema. Effusion.", {"no change": 1})


def test_a_section_of_nothing_but_notifications_is_not_there() -> None:
    raw = f"FINDINGS: Clear.\nIMPRESSION: {NOTIFICATIONS[0]}"
    assert text_of(raw) == ("Clear.", "findings")
    assert problem(NOTIFICATIONS[0], BOTH) == "report empty"


def problem(raw: str, settings: ReportConfig) -> str | None:
    found = report_problem(raw, parse_report(raw, settings), settings)
    return None if found is None else found[0]


def test_problems() -> None:
    assert problem("", BOTH) == "report empty"
    assert problem(" \n ___ XXXX ", BOTH) == "report empty"
    assert problem("FINDINGS: ___\nIMPRESSION:", BOTH) == "report empty"
    assert problem("short", config("whole", least=6)) == "report too short"
    assert problem("longer", config("whole", least=6)) is None


def assert_traceable(raw: str, parsed: ParsedReport) -> None:
    """Each character is the one at its place, or stands in for what was taken out there."""
    offsets = parsed.offsets.tolist()
    assert len(offsets) == len(parsed.text)
    marks = [match.span() for match in re.finditer(re.escape(DEID), parsed.text)]
    in_mark = {at for start, end in marks for at in range(start, end)}
    for at, (character, offset) in enumerate(zip(parsed.text, offsets, strict=True)):
        if at in in_mark:
            continue
        ended = character in ".。" and (raw[offset].isspace() or offset == offsets[at - 1])
        listed = character in ".。" and raw[offset] in "-*•(0123456789"
        assert character in (" ", raw[offset]) or ended or listed
    for start, end in marks:
        assert re.match(r"__|XXXX|\[\*\*|\[DEID\]", raw[parsed.offsets[start] :])
        assert re.search(r"(__|XXXX|\*\*\]|\[DEID\])$", raw[: parsed.offsets[end - 1] + 1])
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
        *("\n\n", "2) ", "[DEID]", "Dr. ___ was paged. ", "。", "3、", "A"),
        *("\ufeff", "é", "肺", "\x00", " .", ",", "\u2028", "[** x **]", "- "),
    ]
)


RAW = st.lists(PIECES | st.text(max_size=5), max_size=25).map("".join)
MODES = st.sampled_from(["drop", "token"])
ENTRIES = st.lists(
    st.sampled_from(["findings+impression", "impression", "preamble", "last_paragraph"]),
    unique=True,
)


@given(RAW, MODES, ENTRIES)
def test_every_character_is_traced_to_the_raw_report(
    raw: str, deidentified: str, entries: list[str]
) -> None:
    assert_traceable(raw, parse_report(raw, config(*entries, "whole", deidentified=deidentified)))


@given(RAW, MODES)
def test_a_whole_report_keeps_its_order_and_its_letters(raw: str, deidentified: str) -> None:
    parsed = parse_report(f"Start {raw}", config("whole", deidentified=deidentified, drop=()))
    assert parsed.section == "whole"
    pairs = pairwise(zip(parsed.offsets.tolist(), parsed.text, strict=True))
    assert all(one < other or b in "DEI" for (one, _), (other, b) in pairs)
    without_marks = re.sub(r"X{4,}|\[\*\*.*?\*\*\]|\[DEID\]", "", raw, flags=re.DOTALL)
    text = parsed.text.replace(DEID, "")
    assert [c for c in text[5:] if c.isalpha()] == [c for c in without_marks if c.isalpha()]


@given(RAW, MODES)
def test_clean_text_has_no_mark_left(raw: str, deidentified: str) -> None:
    text = parse_report(raw, config("whole", deidentified=deidentified)).text
    assert not re.search(r"_{2,}|X{4,}", text)
    assert deidentified == "token" or DEID not in text
    assert DEID + " " + DEID not in text


HOSTILE = (
    *(".", " ", "\n", "_", "__ ", "X", "[**", "((", "1. ", "\n1.", "Dr. ", "a. ", "肺。", "\x00\n"),
    *("CHEST ", "PA CHEST, ", "findings were ", "I have ", "FINDINGS ", "a\n\n", "\n \t", "I, "),
)


@pytest.mark.parametrize("piece", HOSTILE)
def test_no_report_takes_long(piece: str) -> None:
    """Four times the length takes about four times the time; a square would take sixteen."""
    settings = config("findings", "last_paragraph", "whole", deidentified="token")
    seconds = []
    for count in (4_000, 16_000):
        raw = piece * (count // len(piece))
        begin = time.process_time()
        parse_report(raw, settings)
        seconds.append(time.process_time() - begin)
    assert seconds[1] < 10 * seconds[0] + 0.2


# --- real reports


def parsed_counts(raws: list[str], settings: ReportConfig) -> tuple[Counter[str], Counter[str]]:
    """Reports by what is used of them or by problem, and dropped sentences; all are traceable."""
    used, dropped = Counter[str](), Counter[str]()
    for raw in raws:
        parsed = parse_report(raw, settings)
        assert_traceable(raw, parsed)
        assert not re.search("XXXX|___", parsed.text)
        used[parsed.section or problem(raw, settings) or ""] += 1
        used["sentences"] += len(sentence_spans(parsed.text))
        dropped += parsed.dropped
    return used, dropped


@pytest.mark.realdata
@pytest.mark.parametrize("deidentified", ["drop", "token"])
def test_reports_of_open_i(deidentified: str) -> None:
    table = Path(os.environ["AGA_REALDATA"]) / "iu_xray" / "indiana_reports.csv"
    with table.open(encoding="utf-8", newline="") as file:
        raws = [
            "\n".join(f"{name.upper()}: {row[name]}" for name in ("indication", *SECTIONS))
            for row in csv.DictReader(file)
        ]
    strict = config("findings+impression", *SECTIONS, deidentified=deidentified)
    used, dropped = parsed_counts(raws, strict)
    assert 21_000 < used.pop("sentences") < 23_000
    assert used == {
        "findings+impression": 3331,
        "impression": 489,
        "findings": 6,
        "report empty": 25,
    }
    assert dropped == {"notification": 23}, "two more tell the finding, and are kept"
    for name, there in {"findings": 3337, "impression": 3820}.items():
        alone = config(name, drop=())
        assert sum(parse_report(raw, alone).section == name for raw in raws) == there


@pytest.mark.realdata
def test_notes_of_covid_chestxray() -> None:
    root = Path(os.environ["AGA_REALDATA"]) / "covid-chestxray"
    source = CovidChestxray(CovidChestxrayConfig(min_characters=40))
    notes = [row.report for row in source.studies(root) if isinstance(row, Study)]
    used, dropped = parsed_counts([note for note in notes if note], BOTH)
    assert 2_000 < used.pop("sentences") < 4_000
    assert used == {"whole": 523, "impression": 1}
    assert not dropped
