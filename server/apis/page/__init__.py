"""GET / and its files: the page for people, which shows what the server does and lets one try it.

`answer`: what is sent; `page.html`, `style.css` and the modules of `scripts/` are the page as a browser reads it.
"""
