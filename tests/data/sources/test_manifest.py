"""The manifest source: three formats, one meaning, and a reason for each bad row."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_folders import Rows

from aga.data.schema import Reject, Study
from aga.data.sources.manifest import SCHEMA_FILE, Manifest, ManifestConfig, row_schema
from aga.data.sources.manifest_table import NotUtf8, in_utf8
from aga.errors import DataError

Make = Callable[[int], Rows]


def read(
    root: Path, table: str = "pairs.csv", not_utf8: NotUtf8 = "reject"
) -> list[Study | Reject]:
    return list(Manifest(ManifestConfig(table=table, not_utf8=not_utf8)).studies(root))


def test_the_published_schema_is_that_of_the_code() -> None:
    assert json.loads(SCHEMA_FILE.read_text()) == row_schema()


def test_the_published_schema_accepts_and_refuses_as_the_source_does(raw_rows: Make) -> None:
    jsonschema.Draft202012Validator.check_schema(row_schema())
    (row,) = raw_rows(1)
    jsonschema.validate(row, row_schema())
    for change in ({"patient_id": ""}, {"split": "dev"}, {"labels": {"opacity": 2}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(row | change, row_schema())


def test_the_three_formats_mean_the_same(
    raw_rows: Make, save_manifest: Callable[[Rows], Path]
) -> None:
    rows = raw_rows(6)
    root = save_manifest(rows)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (root / "pairs.jsonl").write_text(lines, encoding="utf-8")
    labels = pa.map_(pa.string(), pa.int8())
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    arrays = columns | {
        "labels": pa.array([list(row["labels"].items()) for row in rows], labels)  # type: ignore[attr-defined]
    }
    pq.write_table(pa.table(arrays), root / "pairs.parquet")
    studies = read(root)
    assert studies[1] == Study(
        patient_id="P0",
        study_id="S1",
        image=root / "images/1.png",
        report="FINDINGS: Opacity number 1 is seen.\nIMPRESSION: Pneumonia.",
        location="pairs.csv:4",
        view="PA",
        labels={"effusion": 0, "nodule": None, "opacity": 1},
    )
    for table in ("pairs.jsonl", "pairs.parquet"):
        others = read(root, table)
        assert [replace(one, location="") for one in others] == [  # type: ignore[type-var]
            replace(one, location="")
            for one in studies  # type: ignore[type-var]
        ]
        assert others[1].location == f"{table}:2"


def test_findings_and_impression_make_a_report_in_any_language(
    raw_rows: Make, save_manifest: Callable[[Rows], Path]
) -> None:
    (row,) = raw_rows(1)
    del row["text"]
    row |= {"findings": "両肺野に浸潤影なし。", "impression": "异常なし"}
    (study,) = read(save_manifest([row]))
    assert isinstance(study, Study)
    assert study.report == "FINDINGS: 両肺野に浸潤影なし。\nIMPRESSION: 异常なし"


@pytest.mark.parametrize(
    ("change", "column", "reason"),
    [
        ({"patient_id": ""}, "patient_id", "value missing"),
        ({"study_id": " "}, "study_id", "value missing"),
        ({"image": ""}, "image", "value missing"),
        ({"image": "images/no.png"}, "image", "image missing"),
        ({"image": "x" * 5000}, "image", "image missing"),
        ({"text": ""}, "text", "report empty"),
        ({"split": "dev"}, "split", "value invalid"),
        ({"labels": "{broken"}, "labels", "value invalid"),
        ({"labels": {"opacity": 2}}, "labels.opacity", "value invalid"),
        ({"labels": "[1, 2]"}, "labels", "value invalid"),
    ],
)
def test_a_bad_cell_is_named_without_its_content(
    raw_rows: Make,
    save_manifest: Callable[[Rows], Path],
    change: dict[str, object],
    column: str,
    reason: str,
) -> None:
    rows = raw_rows(3)
    for row in rows:
        row["split"] = "train"
    rows[1] |= change
    first, bad, last = read(save_manifest(rows))
    assert isinstance(first, Study)
    assert isinstance(last, Study)
    assert isinstance(bad, Reject)
    assert (bad.location, bad.reason) == ("pairs.csv:4", reason)
    assert bad.column is not None
    assert bad.column.startswith(column)
    assert not any(str(v) in bad.detail for v in change.values() if str(v).strip())


def test_bad_lines_of_csv(raw_rows: Make, save_manifest: Callable[[Rows], Path]) -> None:
    root = save_manifest(raw_rows(2))
    with (root / "pairs.csv").open("ab") as file:
        file.write(b"P7,S7\n")
        file.write(b"P8,S8,images/0.png,,caf\xe9 noir,\n")
    bad = [one for one in read(root) if isinstance(one, Reject)]
    assert [(one.location, one.column, one.reason) for one in bad] == [
        ("pairs.csv:6", None, "wrong number of columns"),
        ("pairs.csv:7", "text", "not UTF-8"),
    ]


def test_bad_lines_of_jsonl(raw_rows: Make, save_manifest: Callable[[Rows], Path]) -> None:
    (row,) = raw_rows(1)
    root = save_manifest([row])
    lines = [json.dumps(row).encode(), b"", b"{broken", b"[" * 100_000, b'{"text": "caf\xe9"}']
    lines += [json.dumps(row | {"text": 3.5, "patient_id": 12}).encode()]
    lines += [json.dumps(row | {"text": "\ud800"}).encode()]
    lines += [json.dumps({"patient_id": "P1"}).encode()]
    (root / "pairs.jsonl").write_bytes(b"\n".join(lines))
    found = read(root, "pairs.jsonl")
    assert [one.reason if isinstance(one, Reject) else one.patient_id for one in found] == [
        *("P0", "not JSON", "not JSON", "not UTF-8", "12", "not UTF-8", "value missing"),
    ]
    assert found[-1].location == "pairs.jsonl:8"


@pytest.mark.parametrize("column", ["patient_id", "study_id", "image", "text"])
@pytest.mark.parametrize("table", ["pairs.csv", "pairs.jsonl", "pairs.parquet"])
def test_a_missing_column_is_named(
    raw_rows: Make, save_manifest: Callable[[Rows], Path], column: str, table: str
) -> None:
    rows = raw_rows(2)
    for row in rows:
        del row[column]
        del row["labels"]
    root = save_manifest(rows)
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), root / "pairs.parquet")
    with pytest.raises(DataError, match=f"has no column {column}"):
        read(root, table)


def test_unread_columns_are_named(
    raw_rows: Make, save_manifest: Callable[[Rows], Path], caplog: pytest.LogCaptureFixture
) -> None:
    (row,) = raw_rows(1)
    read(save_manifest([row | {"veiw": "PA"}]))
    assert "not read: veiw" in caplog.text


def test_a_missing_table_and_a_foreign_format(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)no pairs.csv.*data.md#manifest"):
        read(tmp_path)
    with pytest.raises(DataError, match="no known format"):
        read(tmp_path, "pairs.xlsx")
    (tmp_path / "pairs.parquet").write_text("text")
    with pytest.raises(DataError, match="not a Parquet file"):
        read(tmp_path, "pairs.parquet")


def test_a_quote_that_never_ends_is_an_error_with_its_line(
    raw_rows: Make, save_manifest: Callable[[Rows], Path]
) -> None:
    root = save_manifest(raw_rows(1))
    with (root / "pairs.csv").open("a") as file:
        file.write('P9,S9,images/0.png,,"never ends\n')
    with pytest.raises(DataError, match=r"(?s)cannot be read as CSV.*pairs.csv:4"):
        read(root)


# --- other encodings

# In GB18030, the second byte of the first character is a backslash: no escape of JSON.
CHINESE, FRENCH = "\u8afe\u80c3\u7aa6\u6e83\u75a1", "\u00e9panchement pleural"


def table_in(encoding: str, row: dict[str, object], text: str, root: Path, table: str) -> None:
    """One row of UTF-8, and the same row with a text in another encoding."""
    cells = {name: row[name] for name in ("patient_id", "study_id", "image")}
    other = text.encode(encoding)
    if table == "pairs.csv":
        head = ",".join([*cells, "text"])
        line = ",".join(map(str, cells.values()))
        rows = [f"{line},{text}".encode(), line.encode() + b"," + other]
        (root / table).write_bytes(b"\n".join([head.encode(), *rows]))
    elif table == "pairs.jsonl":
        line = json.dumps(cells)[:-1] + ', "text": "'
        rows = [f'{line}{text}"}}'.encode(), line.encode() + other + b'"}']
        (root / table).write_bytes(b"\n".join(rows))
    else:
        columns = {name: [cell] * 2 for name, cell in cells.items()}
        values = pa.array([text.encode(), other], pa.binary())
        bytes_as_text = pa.StringArray.from_buffers(2, values.buffers()[1], values.buffers()[2])
        pq.write_table(pa.table(columns | {"text": bytes_as_text}), root / table)


@pytest.mark.parametrize("table", ["pairs.csv", "pairs.jsonl", "pairs.parquet"])
@pytest.mark.parametrize(
    ("encoding", "text"), [("gb18030", CHINESE), ("windows-1252", FRENCH)], ids=["gb", "latin"]
)
def test_text_that_is_not_utf8_is_read_as_configured_or_rejected(
    raw_rows: Make,
    save_manifest: Callable[[Rows], Path],
    table: str,
    encoding: NotUtf8,
    text: str,
) -> None:
    rows = raw_rows(1)
    root = save_manifest(rows)
    table_in(encoding, rows[0], text, root, table)
    first, repaired = read(root, table, encoding)
    assert isinstance(first, Study)
    assert isinstance(repaired, Study)
    assert (first.report, first.repaired) == (text, False)
    assert (repaired.report, repaired.repaired) == (text, True)
    first, rejected = read(root, table)
    assert isinstance(first, Study)
    assert isinstance(rejected, Reject)
    assert rejected.reason == "not UTF-8"
    assert "source.manifest.not_utf8" in rejected.detail


def test_what_is_of_neither_encoding_is_rejected(
    raw_rows: Make, save_manifest: Callable[[Rows], Path]
) -> None:
    rows = raw_rows(1)
    root = save_manifest(rows)
    table_in("latin-1", rows[0], "caf\u00e9 noir", root, "pairs.csv")
    _, rejected = read(root, not_utf8="gb18030")
    assert isinstance(rejected, Reject)
    assert (rejected.reason, rejected.detail, rejected.column) == (
        "not UTF-8",
        "nor gb18030",
        "text",
    )


@pytest.mark.parametrize("table", ["pairs.csv", "pairs.jsonl"])
def test_utf16_is_named(raw_rows: Make, save_manifest: Callable[[Rows], Path], table: str) -> None:
    root = save_manifest(raw_rows(1))
    content = (root / "pairs.csv").read_text()
    (root / table).write_text(content, encoding="utf-16")
    with pytest.raises(DataError, match=r"(?s)is UTF-16.*save it as UTF-8"):
        read(root, table)


@given(st.binary(max_size=40), st.sampled_from(["reject", "windows-1252", "gb18030"]))
def test_any_bytes_become_text_or_nothing(content: bytes, not_utf8: NotUtf8) -> None:
    read = in_utf8(content.decode("utf-8", "surrogateescape"), not_utf8)
    if read is not None:
        read.encode("utf-8")
    assert read is not None or not_utf8 != "windows-1252"
    try:
        assert read == content.decode("utf-8")
    except UnicodeDecodeError:
        assert not_utf8 != "reject" or read is None


def test_space_around_an_identifier_makes_no_other_patient(
    raw_rows: Make, save_manifest: Callable[[Rows], Path]
) -> None:
    (row,) = raw_rows(1)
    root = save_manifest([row | {"patient_id": " P7 ", "study_id": "S7\u00a0"}])
    (study,) = read(root, "pairs.csv")
    assert isinstance(study, Study)
    assert (study.patient_id, study.study_id) == ("P7", "S7")


def test_a_table_without_a_header_tells_no_cell(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("MRN4711,s1,a.png,Erika Muster\n")
    with pytest.raises(DataError) as raised:
        read(tmp_path, "pairs.csv")
    assert "4711" not in str(raised.value).replace(str(tmp_path), "")
    assert "Muster" not in str(raised.value)
