"""RefScenes, the drawn benchmark: shapes, layout, sentences, scenes and their checker."""
