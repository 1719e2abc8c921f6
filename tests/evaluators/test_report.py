"""The table of a detection evaluator: how much of it is shown."""

from types import SimpleNamespace

import pytest

from sm_jax.evaluators import report


@pytest.mark.parametrize("count", [1, 40, 41, 42, 100])
def test_classes_are_left_out_only_where_that_saves_lines(count):
    ap = {label: label / 1000 for label in range(count)}
    result = SimpleNamespace(
        map=0.5,
        map_weighted=0.5,
        recall=0.5,
        ap_joint=0.5,
        best_f1=0.5,
        best_score=0.5,
        ap=ap,
        recall_per_class=ap,
        n_pos=dict.fromkeys(ap, 1),
    )
    evaluator = SimpleNamespace(
        indices=[0], results={0.5: result}, class_names=[f"c{label}" for label in ap], skipped=[]
    )
    lines = report.detection_table(evaluator).splitlines()
    rows = [line for line in lines if line.strip().startswith("c") and "class" not in line]
    more = [line for line in lines if line.strip().startswith("and ")]
    assert len(rows) + len(more) <= report.MAX_ROWS + 1
    if count <= report.MAX_ROWS + 1:
        assert len(rows) == count and not more
    else:
        assert (
            len(rows) == report.MAX_ROWS
            and f"and {count - report.MAX_ROWS} more, none of lower AP" in more[0]
        )
