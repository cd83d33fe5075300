"""Tables, pictures and HTML pages of runs.

Open to other packages:

- `run_report`: the page of one run
- `live`: the page of one run while it works
- `comparisons`: several runs over seeds: numbers, sentences, table, picture and page
- `seed_statistics`: means, standard errors and paired intervals over seeds
- `run_picture`: curves of a run and its baselines
- `share_picture`: who owns which data
- `drawing`: matplotlib, drawing into files
- `page`: one HTML page of tables, pictures and their data
- `run_story`: what is said of a run in words, and the table at its end

Used inside only:

- `profile_picture`: where real time went
- `unit_picture`: units kept by each device type
- `client_figures`: what every client gets: pictures and tables
- `figure_data`: what pictures are drawn from, as CSV

Imports `basics`, `data`, `subnetworks`, `runs`.

Start reading at `run_report`.
"""

__all__ = [
    "comparisons",
    "drawing",
    "live",
    "page",
    "run_picture",
    "run_report",
    "run_story",
    "seed_statistics",
    "share_picture",
]
