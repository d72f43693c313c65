"""From a record to Markdown and pictures; nothing here needs Torch."""
