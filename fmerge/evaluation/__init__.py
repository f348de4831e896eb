"""Passes over the tasks' data: scores, Fishers, Grams, refitted heads."""
