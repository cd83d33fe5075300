"""Many runs of one experiment: strategies over seeds, and Optuna's search over settings.

Open to other packages:

- `comparison`: a strategy and its baselines over seeds
- `study`: an Optuna study
- `study_settings`: a study's YAML file

Used inside only:

- `published`: a comparison as a page to publish
- `checked_study`: a study whose settings can work
- `trial`: the runs of one trial, and what they are measured by
- `storage`: where Optuna keeps a study
- `tuning`: the learning rate of every strategy of a comparison
- `ray_trials`: trials side by side on Ray
- `search_space`: which settings are searched
- `samplers`: Optuna's samplers and pruners by name
- `best_trial`: the front, and which of its trials is the best
- `study_report`: best trials, importances, `study.json`
- `study_page`: the page of a study
- `study_text`: the table of a study, and its words
- `study_picture`: the picture of a study

Imports `basics`, `settings`, `data`, `models`, `clients`, `pool`, `preparation`, `runs`, `reports`.

Start reading at `study`.
"""

__all__ = ["comparison", "study", "study_settings"]
