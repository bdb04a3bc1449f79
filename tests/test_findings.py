"""The findings labeller: negation, uncertainty, what is made up, and its agreement with people's labels."""

from __future__ import annotations

import csv
import gzip
import io
import math
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_report_common import frame

from medbench.scoring.findings import NO_FINDING, chexbert14, contingency, problem_labels
from medbench.scoring.kinds import estimate_kind
from medbench.scoring.report import score

estimate = partial(estimate_kind, "report")

FOURTEEN = {
    *("Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation"),
    *("Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices"),
    NO_FINDING,
}


def test_the_vocabulary_is_chexperts() -> None:
    assert {*chexbert14().findings, NO_FINDING} == FOURTEEN


@pytest.mark.parametrize(
    ("report", "finding", "label"),
    [
        ("There is a small left pleural effusion.", "Pleural Effusion", "present"),
        ("No pneumothorax, pleural effusion, or focal airspace disease.", "Pleural Effusion", "absent"),
        ("No pneumothorax, pleural effusion, or focal airspace disease.", "Lung Opacity", "absent"),
        ("Lungs are clear without effusion.", "Pleural Effusion", "absent"),
        ("Pneumothorax is not seen.", "Pneumothorax", "absent"),
        ("The pneumothorax has resolved.", "Pneumothorax", "absent"),
        ("No pneumothorax, but a right effusion.", "Pleural Effusion", "present"),
        ("No pneumothorax. Right effusion.", "Pleural Effusion", "present"),
        ("No significant change in the right effusion.", "Pleural Effusion", "present"),
        ("Pneumonia cannot be excluded.", "Pneumonia", "possible"),
        ("Opacity which may represent pneumonia.", "Pneumonia", "possible"),
        ("Opacity which may represent pneumonia.", "Lung Opacity", "present"),
        ("Possible left lower lobe infiltrate.", "Lung Opacity", "possible"),
        ("No effusion. Later: small effusion.", "Pleural Effusion", "present"),
        ("The heart is mildly enlarged.", "Cardiomegaly", "present"),
        ("The heart is borderline enlarged.", "Cardiomegaly", "possible"),
        ("The heart is not enlarged.", "Cardiomegaly", "absent"),
        ("Heart size is within normal limits.", "Cardiomegaly", "absent"),
        ("Pericardial effusion.", "Pleural Effusion", None),
        ("Calcified nodule in the left lung.", "Lung Lesion", None),
        ("Soft tissue edema of the ankle.", "Edema", None),
        ("Left PICC line with its tip in the SVC.", "Support Devices", "present"),
        ("Old rib fracture.", "Fracture", "present"),
        ("Biapical pleural thickening.", "Pleural Other", "present"),
        ("The lungs are clear. The heart is normal.", NO_FINDING, "present"),
        ("Left pacemaker. The lungs are clear.", NO_FINDING, "present"),
        ("Possible pneumonia.", NO_FINDING, None),
        ("", NO_FINDING, None),
        (" . ", NO_FINDING, None),
    ],
)
def test_wordings(report: str, finding: str, label: str | None) -> None:
    assert chexbert14().label(report).get(finding) == label
    assert chexbert14().label(report.upper()).get(finding) == label


@given(st.text())
@settings(deadline=None)
def test_any_text_is_labelled(text: str) -> None:
    labels = chexbert14().label(text)
    assert labels.keys() <= FOURTEEN
    assert set(labels.values()) <= {"present", "possible", "absent"}
    present, contained = chexbert14().asserted(text)
    assert present <= contained
    assert NO_FINDING not in contained


FINDINGS = st.sampled_from(["pleural effusion", "pneumothorax", "consolidation", "atelectasis", "edema", "fracture"])


@given(st.sets(FINDINGS), st.sets(FINDINGS))
@settings(deadline=None)
def test_no_negates_a_list_and_a_statement_asserts_it(there: set[str], gone: set[str]) -> None:
    there -= gone
    said = " ".join([*(f"There is {name}." for name in sorted(there)), f"No {', '.join([*sorted(gone), 'mass'])}."])
    assert len(chexbert14().asserted(said)[0]) == len(there)


def hallucination(pairs: list[tuple[str, str]]) -> dict[str, float | None]:
    table = score(frame([g for g, _ in pairs], [p for _, p in pairs]))
    return {name: found.value for name, found in estimate([table], resamples=0).items()}


def test_what_the_reference_does_not_contain_is_made_up() -> None:
    found = hallucination(
        [
            ("Small effusion.", "Small effusion and pneumothorax."),  # one of two made up
            ("Possible pneumonia.", "Pneumonia."),  # the reference has it, as possible: not made up, nor found
            ("No consolidation.", "Consolidation."),  # denied, so made up
            ("Atelectasis.", "The lungs are clear."),  # missed
            ("Normal.", "Possible edema."),  # not asserted
        ]
    )
    assert found["finding_hallucination"] == pytest.approx(2 / 4)
    assert found["hallucinating_share"] == pytest.approx(2 / 5)
    assert found["finding_recall"] == pytest.approx(1 / 2)
    assert found["finding_f1"] == pytest.approx(2 * 1 / (4 + 2))


def test_silence_makes_nothing_up_and_finds_nothing() -> None:
    found = hallucination([("Small effusion.", ""), ("Atelectasis.", ".")])
    assert found["finding_hallucination"] is None
    assert (found["hallucinating_share"], found["finding_recall"]) == (0, 0)
    # Beside one that speaks, silence adds nothing above or below the line.
    assert hallucination([("Small effusion.", ""), ("Atelectasis.", "Edema.")])["finding_hallucination"] == 1


def test_agreement_is_counted() -> None:
    one, other = [frozenset("a"), frozenset("a"), frozenset(), frozenset()], [frozenset("a"), *[frozenset[str]()] * 3]
    found = contingency(one, other, "a")
    assert [found[k] for k in ("tp", "fp", "fn", "tn")] == [1, 1, 0, 2]
    assert (found["precision"], found["recall"], found["kappa"]) == (0.5, 1.0, 0.5)  # (.75 - .5) / (1 - .5)
    assert math.isnan(contingency(one, other, "b")["kappa"])


def test_it_agrees_with_the_problem_words_of_real_reports(shared: Path) -> None:
    """Over all studies with enough of a finding; the committed table has each, apart for the test split."""
    data = gzip.decompress((shared / "iu_xray_reports" / "indiana_reports.csv.gz").read_bytes())
    rows = [row for row in csv.DictReader(io.StringIO(data.decode())) if "no indexing" not in row["Problems"].lower()]
    gold = [problem_labels(row["Problems"], chexbert14().vocabulary) for row in rows]
    labels = [chexbert14().asserted(f"{row['findings']}\n{row['impression']}")[0] for row in rows]
    for name in (
        "Cardiomegaly",
        "Lung Opacity",
        "Edema",
        "Atelectasis",
        "Pneumothorax",
        "Pleural Effusion",
        "Fracture",
    ):
        assert contingency(labels, gold, name)["kappa"] > 0.8, name
    for name in chexbert14().findings:
        assert contingency(labels, gold, name)["kappa"] > 0.5, name
