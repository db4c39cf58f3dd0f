"""Reports as one HTML page each: nothing is fetched, nothing runs, and the plots are in the page itself.

Read in this order: ``blocks`` (what a page is made of), ``scales`` (values to places on an axis), ``page`` (blocks
to HTML, by ``page.html`` and ``style.css``), ``bench_plots`` and ``bench_page``, ``verify_page``,
``eval_page`` (results to blocks), ``spectrograms`` (stems to images).

A page is made of the plain values that the command writes as JSON, so that it can be made again from the file. Its
tables are those that the terminal and Markdown show (``mrsep_deploy.terminal.tables``).
"""
