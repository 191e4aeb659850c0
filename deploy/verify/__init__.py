"""Questions that only a real AWS account can settle, and the script that asks them: docs/first-account.md."""
