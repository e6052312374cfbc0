"""From evaluation records to what people read: figures, one HTML page, a model card, a table in the terminal.

reading.py     files and folders -> evidence.py, all that a report is made from
measured.py    evidence -> sections of words, figures and tables on what was measured
ran.py         the same on what was run, what it cost and how it was made
verdict.py     evidence -> the findings in a few sentences
words.yaml     every sentence, title and caption, as a template
figures.py     the kinds of figures, in the style of drawing.py
report.py      the whole: as a page (page.py, page.html), Markdown, CSV, JSON
effective.py   how far a model's window may be relied upon
model_card.py  the README.md of an extended checkpoint
"""
