"""The same prompts and seeds under several methods: clips, metric values, and a page to look at both."""
