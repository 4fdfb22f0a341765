"""A model, or a file of its predictions -> report, slices, intervals and figures."""
