"""What a finished run shows: `run_record` reads it, `tables` makes the tables, `page` the HTML.

Several runs side by side: `pareto`, `recipe_summary`.
"""
