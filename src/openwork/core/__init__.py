"""What flows through the library: choices, masks, batches, recipes. Knows torch only."""
