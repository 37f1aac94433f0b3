"""The core trains many members at once. It knows no study, flag or file."""
