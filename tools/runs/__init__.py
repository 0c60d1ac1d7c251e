"""What a run has left, as tables, curves and pages.

report.py          a run as a page; report_page.py: the page     compare.py       runs side by side
report_ledger.py   the hardest and easiest samples on it
run_record.py      what a run directory says of its run          run_figures.py   its figures and charts
run_logs.py        logs of headrace, MMEngine and MMCV           timing.py        their step times
curves.py          figures of runs over time                     charts.py        how curves are drawn
"""
