"""Training: recipes, runs that survive a kill, the loop for visual tokenizers, and what every run writes."""
