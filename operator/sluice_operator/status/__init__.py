"""How is a decision shown: as statuses, as conditions, and in full for `explain`? Nothing is decided here."""
