"""The site of these pages: `make site` writes it to site/, warnings being errors."""

project = "phibuild"
author = "the authors of phibuild"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["schema"]
myst_heading_anchors = 4  # links to headings as GitHub names them
html_theme = "furo"
html_title = "phibuild"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
