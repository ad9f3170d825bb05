"""Pages: blocks of content, their writers (HTML, Markdown, terminal), charts, and the one style sheet."""
