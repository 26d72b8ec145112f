"""The technical report: one text with placeholders, filled from result files, as Markdown and as a PDF.

``text/`` holds the sections, ``evidence`` the rows, ``facts`` and ``grids`` the functions that a placeholder
can name, ``template`` fills them in and ``document`` reads the result. ``markdown`` writes it down;
``fonts``, ``breaking``, ``shapes``, ``columns`` and ``pdf`` set it in two columns, ``graphics`` draws, and
``build`` is the command.
"""
