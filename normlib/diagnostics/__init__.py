"""The reader's own model: audited and tracked. Knows torch and `theory`; nothing of our networks."""
