"""The console: a page that shows what runs, and may cancel it."""
