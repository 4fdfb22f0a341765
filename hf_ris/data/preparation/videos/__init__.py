"""Referring video data sets: raw downloads -> the schema of videos, one file per data set, and what they share."""
