"""What a report shows of itself."""

import json

from oseg_video.engine.report import GuidanceReport, PassRecord, StepRecord


def report() -> GuidanceReport:
    plain = PassRecord(("uncond", "cond"), 2, 0, 4, ())
    weak = PassRecord(("perturbed",), 1, 3, 4, ("blocks.3.attn1",))
    steps = [StepRecord(index, 1 - index / 4, (plain, weak)) for index in range(3)]
    return GuidanceReport("oseg<", 4, [*steps, StepRecord(3, 0.25, (plain,))])


def test_a_report_is_one_short_line() -> None:
    assert repr(report()) == "GuidanceReport(oseg<: 4 steps, 2.19 passes a step)"
    assert repr(GuidanceReport("cfg", 4)) == "GuidanceReport(cfg: no step yet)"


def test_its_details_are_a_table_on_demand() -> None:
    lines = report().table().splitlines()
    assert [line.split() for line in lines[1:3]] == [
        ["steps", "branches", "blocks", "run", "perturbed", "at"],
        ["3", "uncond,", "cond", "0", "to", "3", "of", "4", "-"],
    ]
    assert lines[3].split() == ["perturbed", "3", "to", "3", "of", "4", "blocks.3.attn1"]
    assert lines[4].split()[0] == "1" and len(lines) == 5
    assert [line.index("perturbed at") for line in lines[1:2]] == [lines[3].index("blocks.3.attn1")]
    assert lines[3].startswith("  ") and all(line == line.rstrip() for line in lines)


def test_notebooks_get_the_table_with_names_escaped() -> None:
    shown = report()._repr_html_()
    assert shown.startswith("<p>GuidanceReport(oseg&lt;: 4 steps") and "<td>blocks.3.attn1</td>" in shown
    assert shown.count("<tr>") == 4
    assert "<tr><th>steps</th><th>branches</th><th>blocks run</th><th>perturbed at</th></tr>" in shown


def test_as_a_dictionary_it_is_what_json_gives_back() -> None:
    found = report().to_dict()
    assert json.loads(json.dumps(found)) == found
    assert [kind["steps"] for kind in found["step_kinds"]] == [3, 1]
    assert found["step_kinds"][0]["passes"][1]["fired"] == ["blocks.3.attn1"]
