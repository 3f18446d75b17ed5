"""The reader's own model, audited and tracked. Knows torch and `theory`, no networks of ours."""
