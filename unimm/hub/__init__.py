"""What a model takes to the Hub: its card, its licence, its evaluation records, and the stub that loads it there."""
