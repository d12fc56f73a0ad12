"""Money: what a run may cost, where it runs cheapest, and what it did cost."""
