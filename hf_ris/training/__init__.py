"""Training by a recipe: recipe, build, loop, optimizer, order, run folder."""
