"""Names of metrics: every source's numbers under names of their own, whatever the sources are called."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.evaluation.identity import Identity
from pipeline.evaluation.metrics import DepthEntry, Measured, Metrics
from pipeline.tracking.server import clean_name
from tokenization.splits import validation_key


def measured(number: int) -> Measured:
    return Measured(
        rows=1,
        tokens=number,
        loss=number,
        perplexity=number,
        bits_per_byte=number,
        mean_depth=number,
        halted_share=[number],
        by_depth=[DepthEntry(depth=depth, tokens=number, loss=number) for depth in (1, 2)],
    )


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), unique=True, max_size=6))
@example(["日本", "中国", ".", "depth_2", "halted_share", "source", "a/b", "a:b"])
@settings(max_examples=30, deadline=None)
def test_no_source_takes_anothers_name_nor_the_overall_ones(sources):
    identity = Identity(
        suite="validation",
        checkpoint="step-00000001",
        step=1,
        save_id="a",
        recipe_hash="b",
        manifest_hash="c",
        settings={"rows_per_source": "all"},
    )
    metrics = Metrics(
        identity=identity,
        max_passes=2,
        halting="masked",
        overall=measured(100),
        sources={source: measured(number) for number, source in enumerate(sources)},
        seconds=1.0,
        device="cpu",
    )
    flat = metrics.flat({source: validation_key(source).removeprefix("validation-") for source in sources})
    stored = {clean_name(f"eval/validation/{name}"): value for name, value in flat.items()}
    assert len(stored) == len(flat)
    assert list(stored) == [f"eval/validation/{name}" for name in flat]
    overall = [value for value in flat.values() if value == 100]
    assert len(flat) == len(overall) * (1 + len(sources))
