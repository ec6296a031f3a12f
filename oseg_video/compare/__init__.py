"""The same prompts and seeds under several methods: clips, figures, and a page to look at both."""
