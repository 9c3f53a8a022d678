"""What talks to a running server: its client, and what is measured, compared and judged through it."""
