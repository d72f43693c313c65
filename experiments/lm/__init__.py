"""What the measurements of a language model share."""
