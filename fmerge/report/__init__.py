"""What a merge shows: tables, pictures, Markdown, HTML and model cards."""
