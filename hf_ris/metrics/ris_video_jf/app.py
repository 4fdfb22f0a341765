"""The Space of this metric: a table of per-sample counts in, the metric out.  Run: python app.py"""

from pathlib import Path

import evaluate
import gradio as gr


METRIC = evaluate.load(str(next(Path(__file__).parent.glob("ris_*.py"))))
FIELDS = list(METRIC.features if isinstance(METRIC.features, dict) else METRIC.features[0])


def compute(rows: list[list[float]]) -> dict:
    """Rows of numbers, one column for each input of the metric -> its result; empty rows are left out."""
    rows = [[int(value) for value in row] for row in rows if all(value not in ("", None) for value in row)]
    if not rows:
        raise gr.Error(f"Fill at least one row with whole numbers for {', '.join(FIELDS)}.")
    return METRIC.compute(**dict(zip(FIELDS, map(list, zip(*rows)))))


demo = gr.Interface(
    compute,
    gr.Dataframe(headers=FIELDS, datatype="number", type="array", column_count=len(FIELDS)),
    gr.JSON(),
    title=METRIC.name,
    description=METRIC.description,
)

if __name__ == "__main__":
    demo.launch()
