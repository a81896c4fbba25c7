"""Tasks are taken by their row in meta/tasks.parquet instead of by task_index (lerobot-dataset-visualizer#61)."""

from case_sets import check, end, make, pa, rewrite

from pi0.ript.data.reader import open_set
from pi0.ript.data.settings import DatasetSettings

root = make()
true = [labels.instruction for labels in open_set(DatasetSettings(root=str(root))).labels]
assert true == ["do thing 0", "do thing 1", "do thing 0", "do thing 1"]


def backwards(table):  # rows reversed, values kept
    return table.take(pa.array(range(len(table) - 1, -1, -1)))


rewrite(root, "meta/tasks.parquet", backwards)
try:
    frames = open_set(DatasetSettings(root=str(root)))
except ValueError as error:
    check("tasks" in str(error), f"refused: {error}")
else:
    trained = [frames.frame_instructions()[i] for i in frames.starts]
    said = [labels.instruction for labels in frames.labels]
    check(
        trained == said == true,
        f"the policy is trained on {trained}, the episodes are of {said}, in truth of {true}",
    )

end()
