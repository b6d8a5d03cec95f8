"""What the provider adds to Airflow's own UI: the clip page and the gallery."""
