"""The core: many members trained at once. It knows no study, no flag and no file."""
