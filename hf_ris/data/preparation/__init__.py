"""Raw downloads -> the one schema: one file per data set, and the machinery they share; in `videos` those of videos."""
